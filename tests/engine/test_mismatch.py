"""What the watch compares: only logprobs of which both sides mean the same."""

from pathlib import Path

import numpy as np
import pytest

from weaver.backend import Pass
from weaver.domain import (
    AdapterRef,
    Datum,
    ForwardBackwardResult,
    SampledSequence,
    SampleRequest,
    SampleResult,
    SamplingParams,
    StopReason,
)
from weaver.engine.mismatch import MEAN, MismatchWatch
from weaver.registry import load_registry

TOKENS = np.array([3, 4, 5, 6])
ADAPTER = AdapterRef("a", Path("nowhere"))


@pytest.mark.parametrize(("params", "compared"), [({}, True), ({"min_tokens": 2}, False), ({"top_p": 0.5}, False)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_of_what_min_tokens_left_are_not_compared_with_the_models_own(params, compared, temperature):
    watch = MismatchWatch(share=1.0, warning=9.0)
    watch.saved("m", "a")
    request = SampleRequest(TOKENS[:2], 1, SamplingParams(2, temperature=temperature, **params), ADAPTER)
    sequence = SampledSequence(TOKENS[2:], np.array([-1.0, -2.0], np.float32), StopReason.LENGTH)
    watch.sampled(request, SampleResult((sequence,)))
    datum = Datum(TOKENS[:-1], {"target_tokens": TOKENS[1:], "weights": np.ones(3, np.float32)})
    one = Pass("m", [datum], load_registry().loss("cross_entropy"), {}, True)
    told = watch.trained(one, ForwardBackwardResult((np.array([-3.0, -1.5, -2.0], np.float32),), {}))
    whole_at_0 = temperature == 0 and "top_p" in params  # greedy logprobs are the model's own whatever top_p says
    assert told.metrics.get(MEAN) == (pytest.approx(0.25) if compared or whole_at_0 else None)
