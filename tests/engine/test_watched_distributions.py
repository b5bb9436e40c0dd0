"""What was drawn among some tokens only is compared with what was trained on over the same ones."""

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
    TokenRows,
)
from weaver.engine.mismatch import MEAN, MismatchWatch
from weaver.plugins.losses import weaver_losses

LOSS = next(loss for loss in weaver_losses() if loss.name == "importance_sampling")
PROMPT, DRAWN, ROWS = [5, 6, 7], [8, 9], [[2, 8], [3, 9, 11]]
OURS = np.array([-9, -9, -0.5, -1.5], np.float32)
THEIRS = np.array([-0.5, -1.25], np.float32)
CUT = {"temperature": 0.8, "top_p": 0.9}


def sampled(rows, **params):
    """A watch that has heard of one draw."""
    watch = MismatchWatch(share=1.0, warning=10.0)
    watch.saved("model", "adapter")
    request = SampleRequest(np.array(PROMPT), 1, SamplingParams(2, **params), AdapterRef("adapter", Path("nowhere")))
    mask = None if rows is None else TokenRows.of_lists(rows)
    sequence = SampledSequence(np.array(DRAWN), THEIRS, StopReason.LENGTH, sampling_mask=mask)
    watch.sampled(request, SampleResult((sequence,)))
    return watch


def trained(watch, rows, temperature=1.0):
    """The metrics of a pass over what was drawn; the rows are those of the drawn tokens."""
    tokens = PROMPT + DRAWN
    mask = None if rows is None else TokenRows.of_lists([[], [], *rows])
    datum = Datum(np.array(tokens[:-1]), {"target_tokens": np.array(tokens[1:])}, sampling_mask=mask)
    one = Pass("model", [datum], LOSS, LOSS.effective_config({"temperature": temperature}), backward=True)
    return watch.trained(one, ForwardBackwardResult((OURS,), {})).metrics


def test_over_the_same_tokens_at_the_same_temperature_they_are_compared_once():
    watch = sampled(ROWS, **CUT)
    assert trained(watch, ROWS, 0.8) == {MEAN: pytest.approx(0.125), "sampler_mismatch:max": pytest.approx(0.25)}
    assert trained(watch, ROWS, 0.8) == {}


@pytest.mark.parametrize(
    ("rows", "temperature"),
    [(None, 0.8), ([[], []], 0.8), ([[2, 8], [3, 9]], 0.8), ([[2, 8, 3], [9, 11]], 0.8), (ROWS, 1.0)],
    ids=str,
)
def test_otherwise_they_are_not_and_wait_for_a_pass_that_is_alike(rows, temperature):
    watch = sampled(ROWS, **CUT)
    assert trained(watch, rows, temperature) == {}
    assert MEAN in trained(watch, ROWS, 0.8)


@pytest.mark.parametrize(
    "params", [CUT, {"top_k": 3}, {"min_tokens": 1}, {"min_tokens": 1, "temperature": 0.0}], ids=str
)
def test_what_was_drawn_among_unknown_tokens_is_never_compared(params):
    watch = sampled(None, **params)
    assert trained(watch, None) == trained(watch, ROWS) == trained(watch, ROWS, 0.8) == {}


@pytest.mark.parametrize(("rows", "again"), [(None, None), ([[], []], None), (None, [[], []])], ids=str)
def test_a_mask_that_keeps_everything_is_none(rows, again):
    assert MEAN in trained(sampled(rows), again)


def test_what_was_drawn_among_all_tokens_is_not_compared_with_what_some_were_left_out_of():
    watch = sampled(None)
    assert trained(watch, ROWS) == {}
    assert MEAN in trained(watch, None)


def test_greedy_draws_are_the_models_own():
    assert MEAN in trained(sampled(None, temperature=0.0, top_k=3), None)
