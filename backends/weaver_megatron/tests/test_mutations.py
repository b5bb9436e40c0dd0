"""The comparisons of these tests can fail: each of these breaks of the product shows in them."""

import math

import pytest
from breaks import BREAKS, break_product, mend_product
from parity import Worst, by_ranks, by_transformers, create, mixed_passes, open_model
from weaver_megatron.layout import Layout

from weaver.errors import LossFailed

PLAIN, SEQUENCE, DATA, EXPERTS = Layout(tp=2), Layout(tp=2, sequence_parallel=True), Layout(dp=2), Layout(dp=2, ep=2)
CASES = [
    ("the sum of row-parallel updates", PLAIN, "llama"),
    ("the sum of low-rank gradients", PLAIN, "llama"),
    ("the sum of what experts found", PLAIN, "qwen3_moe"),
    ("the sum of gradients before experts", PLAIN, "qwen3_moe"),
    ("the sum of what experts of other data ranks found", EXPERTS, "qwen3_moe"),
    ("the sum of exponentials", PLAIN, "llama"),
    ("the sum of what entropies are made of", PLAIN, "llama"),
    ("the rows of kept tokens", PLAIN, "llama"),
    ("the highest logit of all ranks", PLAIN, "llama"),
    ("the sum of embeddings", PLAIN, "llama"),
    ("the sums of gradients over tokens and data", SEQUENCE, "llama"),
    ("the sums of gradients over tokens and data", DATA, "llama"),
    ("the order of query, key and value heads", PLAIN, "llama"),
    ("the rows of gate and up", PLAIN, "llama"),
    ("the interleaving of query, key and value rows", PLAIN, "llama"),
    ("the broadcast of a loss's gradient", PLAIN, "llama"),
]
ONLY_GRADIENTS = {
    "the sum of what entropies are made of",
    "the sum of low-rank gradients",
    "the sum of gradients before experts",
    "the sums of gradients over tokens and data",
    "the broadcast of a loss's gradient",
}


def test_all_breaks_are_tried():
    assert {what for what, _, _ in CASES} == BREAKS.keys()


@pytest.mark.parametrize(("what", "layout", "model"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_a_break_of_the_product_shows(groups, models, what, layout, model):
    group, passes = groups(layout), mixed_passes()
    group.call(break_product, what)
    try:
        open_model(group, models[model], budget=24)
        adapters, worst = create(group), Worst()
        worst.add(by_ranks(group, passes), by_transformers(models[model], adapters, passes))
    except LossFailed as error:
        if "its value is nan" not in str(error):  # it is where a rank has no token of a sampling mask's row
            raise
        worst = Worst(math.inf, math.inf)
    finally:
        group.call(mend_product)
    print(f"without {what}: logprobs differ by {worst.logprob:.1e}, gradients by {worst.gradient:.1e}")
    assert not worst.gradient < 1e-2
    assert (worst.logprob <= 1e-5) == (what in ONLY_GRADIENTS)
