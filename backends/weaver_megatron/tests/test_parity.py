"""Logprobs and every gradient of a LoRA tensor beside transformers and peft in one process, float32, each layout."""

import os
from pathlib import Path

import pytest
from parity import Worst, by_ranks, by_transformers, create, mixed_passes, open_model
from weaver_megatron.layout import Layout

TABLE = os.environ.get("WEAVER_PARITY_TABLE", "")
DENSE = {
    "TP1": Layout(),
    "TP2": Layout(tp=2),
    "TP2, sequence parallel": Layout(tp=2, sequence_parallel=True),
    "TP2 x DP2": Layout(tp=2, dp=2),
    "TP4": Layout(tp=4),
    "TP4, sequence parallel, recompute": Layout(tp=4, sequence_parallel=True, recompute=True),
}
MIXTURE = {
    "TP1 x DP2, EP2": Layout(dp=2, ep=2),
    "TP1 x DP2, EP2, recompute": Layout(dp=2, ep=2, recompute=True),
    "TP2, EP2": Layout(tp=2, ep=2),
    "TP2, EP2, sequence parallel, recompute": Layout(tp=2, ep=2, sequence_parallel=True, recompute=True),
    "TP2 x DP2, EP4": Layout(tp=2, dp=2, ep=4),
    "TP2 x DP2, EP4, sequence parallel": Layout(tp=2, dp=2, ep=4, sequence_parallel=True),
    "TP4, EP2": Layout(tp=4, ep=2),
}
USUAL = {"TP2", "TP2, sequence parallel", "TP2 x DP2", "TP1 x DP2, EP2", "TP2 x DP2, EP4, sequence parallel"}
"""What every test run compares; with a table, all."""
CASES = [(name, model) for name in DENSE for model in ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")]
CASES += [(name, "qwen3_moe") for name in MIXTURE]
CASES = [case for case in CASES if TABLE or case[0] in USUAL]


@pytest.fixture(scope="module")
def expected():
    """What transformers and peft compute, once for each model."""
    return {}


@pytest.fixture(scope="module")
def table():
    """One line for each case that ran, written to the file that WEAVER_PARITY_TABLE names."""
    lines = []
    yield lines
    if TABLE:
        Path(TABLE).write_text("\n".join([HEAD, *lines, ""]), encoding="utf-8")


HEAD = """# weaver_megatron beside transformers and peft

Written by `make test-megatron`. float32 on CPUs, gloo; tiny random models of 2 layers, hidden size 64, 8 heads, 4 key
heads, vocabulary 131; three adapters of ranks 4, 7 and 2 with other targets in one call, two losses at three
temperatures, with and without entropies and sampling masks, one and three targets per token, micro-batches of at most
24 tokens, chunks of 7. The largest difference of any logprob (limit 1e-5), and of any gradient of a LoRA tensor,
relative to the largest number of its tensor (limit 1e-4).

| model | ranks | logprob | gradient |
|---|---|---|---|"""


@pytest.mark.parametrize(("name", "model"), CASES)
def test_logprobs_and_every_gradient_are_those_of_transformers_and_peft(groups, models, expected, table, name, model):
    layout = (DENSE | MIXTURE)[name]
    group, passes = groups(layout), mixed_passes()
    open_model(group, models[model], budget=24)
    adapters = create(group)
    if model not in expected:
        expected[model] = by_transformers(models[model], adapters, passes)
    worst = Worst()
    worst.add(by_ranks(group, passes), expected[model])
    table.append(f"| {model} | {name} | {worst.logprob:.1e} | {worst.gradient:.1e} |")
    assert worst.logprob <= 1e-5
    assert worst.gradient <= 1e-4, worst.where
    if layout not in (Layout(tp=2), Layout(tp=2, dp=2)) and model == "qwen3_moe":
        groups.end(layout)


def test_a_call_with_everything_in_one_micro_batch_computes_the_same(groups, models, expected):
    group, passes = groups(Layout(tp=2)), mixed_passes()
    open_model(group, models["llama"])
    adapters, worst = create(group), Worst()
    worst.add(by_ranks(group, passes), by_transformers(models["llama"], adapters, passes))
    assert worst.logprob <= 1e-5
    assert worst.gradient <= 1e-4, worst.where


def test_a_bfloat16_model_is_near_float32(groups, models):
    """Adapters stay float32. transformers in bfloat16 is as far from float32 as this."""
    group, passes = groups(Layout(tp=2)), mixed_passes()
    open_model(group, models["llama"], budget=24, dtype="bfloat16")
    adapters, worst = create(group), Worst()
    found = by_ranks(group, passes)
    worst.add(found, by_transformers(models["llama"], adapters, passes))
    assert 1e-4 < worst.logprob < 0.1
    assert worst.gradient < 0.15, worst.where
