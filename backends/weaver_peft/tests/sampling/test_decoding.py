from dataclasses import replace

import numpy as np
import pytest
import torch
from weaver_peft.decoding import DecodeLoop

from weaver.domain import AdapterRef, SampleRequest, SamplingParams
from weaver.errors import CheckpointDamaged, InvalidInput

from .tiny import (
    LIMITS,
    add,
    ask,
    expected_logprobs,
    expected_prompt_logprobs,
    finish,
    prompt,
    run,
    same,
    with_peft,
)

# What is drawn


def test_greedy_draws_what_transformers_generates(loop, reference):
    requests = [ask(length, seed=length, temperature=0, max_tokens=20) for length in (1, 2, 9, 30)]
    for request, result in zip(requests, run(loop, *requests)):
        generated = reference.generate(
            torch.tensor(request.prompt_n)[None], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert result.sequences[0].tokens.tolist() == generated[0, len(request.prompt_n) :].tolist()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"temperature": 1.2, "top_p": 0.7},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8},
        {"temperature": 0, "top_k": 1, "top_p": 0.1},
    ],
)
def test_logprobs_are_those_of_the_distribution_drawn_from(loop, reference, params):
    requests = [ask(length, seed=length, samples=2, **params) for length in (1, 5, 40)]
    for request, result in zip(requests, run(loop, *requests)):
        for sequence in result.sequences:
            np.testing.assert_allclose(sequence.logprobs, expected_logprobs(reference, request, sequence), atol=1e-4)


def test_requests_with_other_settings_share_a_batch(loop, reference):
    requests = [ask(seed=1, temperature=0), ask(seed=2, top_k=3), ask(seed=3, top_p=0.5), ask(seed=4, temperature=2.0)]
    for request, result in zip(requests, run(loop, *requests)):
        expected = expected_logprobs(reference, request, result.sequences[0])
        np.testing.assert_allclose(result.sequences[0].logprobs, expected, atol=1e-4)
    assert loop.statistics.decode_calls == 12


def test_a_seed_draws_the_same_alone_and_in_a_busy_batch(base, adapters):
    request = SampleRequest(prompt(0, 20), 2, SamplingParams(30, seed=2**64 + 7, stop_token_ids=()))
    [alone] = run(DecodeLoop(base, LIMITS), request)
    busy = DecodeLoop(base, LIMITS)
    others = [add(busy, ask(length, adapter=each)) for length, each in zip((3, 200, 7), adapters.values())]
    for _ in range(3):
        busy.step()
    future = add(busy, request)
    busy.step()
    others.append(add(busy, ask(100, seed=100, max_tokens=40)))
    finish(busy)
    assert all(other.done() for other in others)
    assert same(alone, future.result(timeout=0))
    assert not np.array_equal(alone.sequences[0].tokens, alone.sequences[1].tokens)


def test_other_seeds_and_no_seed_draw_other_tokens(loop):
    def seeded(seed):
        return SampleRequest(prompt(0), 1, SamplingParams(30, temperature=2.0, seed=seed, stop_token_ids=()))

    results = run(loop, *map(seeded, [1, 2, -1, None, None]))
    assert len({tuple(result.sequences[0].tokens.tolist()) for result in results}) == 5


# Adapters


def test_every_adapter_of_a_mixed_batch_computes_what_peft_computes(loop, folder, reference, adapters):
    chosen = [None, *adapters.values()]
    requests = [ask(6 + seed, seed=seed, samples=2, adapter=each) for seed, each in enumerate(chosen)]
    for request, result in zip(requests, run(loop, *requests)):
        model = reference
        if request.adapter is not None:
            model = with_peft(folder, request.adapter)
        for sequence in result.sequences:
            np.testing.assert_allclose(sequence.logprobs, expected_logprobs(model, request, sequence), atol=1e-4)


def test_prompt_logprobs_are_the_adapters_own(loop, folder, adapters):
    request = replace(ask(adapter=adapters["head"]), prompt_logprobs=True)
    [result] = run(loop, request)
    expected = expected_prompt_logprobs(with_peft(folder, adapters["head"]), request.prompt_n)
    np.testing.assert_allclose(result.prompt_logprobs_n[1:], expected, atol=1e-4)


def test_rows_share_columns_only_within_an_adapter(loop, adapters):
    run(loop, ask(), ask(adapter=adapters["all"]), ask(adapter=adapters["small"]))
    assert loop.statistics.prefilled_tokens == 3 * 8


def test_a_bad_adapter_fails_its_request_alone(loop, tmp_path):
    bad = add(loop, ask(adapter=AdapterRef("bad", tmp_path / "nowhere")))
    [good] = run(loop, ask())
    assert len(good.sequences[0].tokens) == 12
    with pytest.raises(CheckpointDamaged, match=r"the adapter in .*nowhere cannot be read: adapter_config\.json"):
        bad.result(timeout=0)


def test_an_adapter_that_gives_no_numbers_fails_alone_and_leaves_nothing_behind(loop, adapters, reference):
    broken = {name: replace(pair, b=pair.b * torch.nan) for name, pair in loop._adapters.get(adapters["all"]).items()}
    loop._adapters._loaded["all"] = broken
    requests = [ask(60, seed=1), ask(5, seed=2)]
    good, bad = add(loop, requests[0]), add(loop, ask(50, adapter=adapters["all"]))
    loop.step()
    with pytest.raises(InvalidInput, match="the adapter 'all' gives logits that are not finite; no token can be drawn"):
        bad.result(timeout=0)
    heir_of_its_slot = add(loop, requests[1])
    finish(loop)
    for request, future in zip(requests, (good, heir_of_its_slot)):
        sequence = future.result(timeout=0).sequences[0]
        np.testing.assert_allclose(sequence.logprobs, expected_logprobs(reference, request, sequence), atol=1e-4)


def test_adapters_that_need_room_are_dropped_when_idle_and_come_back(base, adapters):
    loop = DecodeLoop(base, replace(LIMITS, adapter_bytes=1))
    [before] = run(loop, ask(adapter=adapters["all"], temperature=0))
    other = add(loop, ask(adapter=adapters["small"]))
    loop.step()
    assert "all" not in loop._adapters
    assert "small" in loop._adapters
    finish(loop)
    assert other.done()
    [after] = run(loop, ask(adapter=adapters["all"], temperature=0))
    assert same(before, after)


def test_a_forgotten_adapter_stays_until_its_requests_are_done(loop, adapters):
    future = add(loop, ask(adapter=adapters["all"]))
    loop.step()
    loop.forget("all")
    assert "all" in loop._adapters
    finish(loop)
    assert future.done()
    assert "all" not in loop._adapters
