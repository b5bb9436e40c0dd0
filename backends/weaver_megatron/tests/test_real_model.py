"""SmolLM2-135M has 9 heads and 3 key/value heads: three ranks can share it, two cannot."""

import numpy as np
import pytest
import rank_tasks
from parity import LOSSES, OnRanks
from transformers import AutoTokenizer
from weaver_megatron.layout import Layout
from weaver_peft.demo_model import demo_model_folder
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.domain import AdamParams, Datum, LoraSpec, ModelSource
from weaver.errors import InvalidInput

pytestmark = pytest.mark.demo_model
TEXT = "The tide went out at noon, and the boats lay in the mud until the evening brought the water back to them."


def test_two_ranks_are_refused_naming_the_heads(groups):
    source = ModelSource("SmolLM2", "demo", "cpu")
    with pytest.raises(InvalidInput, match=r"tp is 2, but 'SmolLM2' has 9 attention heads and 3 key/value heads"):
        groups(Layout(tp=2)).call(rank_tasks.open_model, source)


def test_three_ranks_train_as_peft_does(groups):
    """The largest differences of logprobs and, after a step, of logprobs again: weights near zero differ more, because
    Adam makes a whole step of any gradient."""
    ids = np.array(AutoTokenizer.from_pretrained(demo_model_folder())(TEXT)["input_ids"])
    weights = np.random.default_rng(0).normal(size=len(ids) - 1).astype(np.float32)
    data = [Datum(ids[:-1].copy(), {"target_tokens": ids[1:].copy(), "weights": weights})]
    told = []
    for backend in (
        open_backend(ModelSource("demo", "demo", "cpu", "float32")),
        OnRanks(groups(Layout(tp=3)), demo_model_folder(), "float32"),
    ):
        backend.create_model("m", LoraSpec(4, 8.0, seed=5))
        one = Pass("m", data, LOSSES["cross_entropy"], {}, True)
        (before,) = backend.forward_backward([one])
        norm = backend.optim_step("m", AdamParams(1e-3))["grad_norm"]
        (after,) = backend.forward_backward([one])
        told.append((before.logprobs[0], norm, after.logprobs[0]))
        backend.drop_model("m")
    groups.end(Layout(tp=3))
    (before, norm, after), (found_before, found_norm, found_after) = told
    assert np.abs(before - found_before).max() < 1e-4
    assert found_norm == pytest.approx(norm, rel=1e-4)
    assert np.abs(after - found_after).max() < 1e-3 < np.abs(after - before).max()
