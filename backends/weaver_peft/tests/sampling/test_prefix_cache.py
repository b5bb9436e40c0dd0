"""Prompts that begin like a sequence that is over take its columns, of the same weights only, within the memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from weaver_peft.decoding import KEPT_PART, DecodeLoop
from weaver_peft.kv_cache import CacheShape
from weaver_peft.prefix_cache import PrefixCache

from weaver.domain import SampleRequest, SamplingParams

from .tiny import LIMITS, ask, expected_logprobs, expected_prompt_logprobs, prompt, run, with_peft


def turn(tokens, adapter=None, **questions):
    return SampleRequest(tokens, 1, SamplingParams(20, temperature=0, stop_token_ids=()), adapter, **questions)


def test_each_turn_of_a_conversation_computes_only_what_is_new(loop, reference):
    tokens, lengths = prompt(0, 100), []
    for number in range(4):
        request = turn(tokens)
        [result] = run(loop, request)
        sequence = result.sequences[0]
        np.testing.assert_allclose(sequence.logprobs, expected_logprobs(reference, request, sequence), atol=1e-4)
        lengths.append((len(tokens), result.cached_prompt_tokens))
        tokens = np.concatenate([tokens, sequence.tokens, prompt(number + 1, 10)])
    # Of a turn all but the last token drawn has columns: the next turn computes that one and the 10 new ones but one.
    assert lengths == [(100, 0), (130, 119), (160, 149), (190, 179)]
    assert loop.statistics.prefilled_tokens == 99 + 3 * 10


def test_a_prompt_asked_again_is_not_computed_again_and_draws_the_same(loop, reference):
    request = turn(prompt(0, 150))
    [first], [again] = run(loop, request), run(loop, request)
    assert again.cached_prompt_tokens == 149
    assert again.sequences[0].tokens.tolist() == first.sequences[0].tokens.tolist()
    np.testing.assert_allclose(again.sequences[0].logprobs, first.sequences[0].logprobs, atol=1e-5)
    scored = replace(request, prompt_logprobs=True)
    [whole], [end] = run(loop, scored), run(loop, replace(scored, prompt_logprobs_last_n=5))
    assert (whole.cached_prompt_tokens, end.cached_prompt_tokens) == (0, 144)
    expected = expected_prompt_logprobs(reference, request.prompt_n)
    np.testing.assert_allclose(whole.prompt_logprobs_n[1:], expected, atol=1e-4)
    np.testing.assert_allclose(end.prompt_logprobs_n[-5:], expected[-5:], atol=1e-4)


def test_columns_are_never_shared_between_adapters_or_with_the_base_model(loop, folder, reference, adapters):
    tokens = prompt(0, 150)
    for adapter in (None, adapters["small"], adapters["all"]):
        [result] = run(loop, turn(tokens, adapter))
        model = reference if adapter is None else with_peft(folder, adapter)
        assert result.cached_prompt_tokens == 0
        expected = expected_logprobs(model, turn(tokens), result.sequences[0])
        np.testing.assert_allclose(result.sequences[0].logprobs, expected, atol=1e-4)
    [again] = run(loop, turn(tokens, adapters["small"]))
    assert again.cached_prompt_tokens == 149
    loop.forget("small")
    assert all(kept.key[0] != "small" for kept in loop._finished._kept)
    assert len(loop._finished._kept) == 2


def test_what_is_kept_makes_room_for_what_runs(base):
    slot_bytes = CacheShape.of_model(base.model).slot_bytes(128)
    loop = DecodeLoop(base, replace(LIMITS, cache_bytes=8 * slot_bytes))
    for seed in range(6):
        run(loop, ask(length=100, seed=seed))
        assert 0 < loop._finished.size_bytes <= 8 * slot_bytes // KEPT_PART
    results = run(loop, *(ask(length=100, seed=100 + seed, samples=1) for seed in range(8)))
    assert len(results) == 8
    full = DecodeLoop(base, replace(LIMITS, cache_bytes=slot_bytes))
    run(full, ask(length=100))
    assert full._finished.size_bytes <= slot_bytes // KEPT_PART


def columns(size):
    return torch.arange(float(size)).expand(2, 1, 1, size).unsqueeze(-1)


@pytest.fixture
def cache():
    return PrefixCache()


def test_the_longest_beginning_is_found_and_the_least_recently_used_goes_first(cache):
    one, other, third = prompt(1, 90), prompt(2, 80), prompt(3, 70)
    for tokens in (one, other, third):
        cache.add("a", tokens, columns(len(tokens)))
    branch = np.concatenate([one[:75], other])
    cache.add("a", branch, columns(len(branch)))
    assert cache.longest("a", one).shape[3] == 90
    assert cache.longest("a", np.concatenate([one[:85], [0, 1]])).shape[3] == 85
    assert cache.longest("a", branch[:130]).shape[3] == 130
    assert cache.longest("b", one) is None
    assert cache.longest("a", one[:63]) is None
    cache.shrink(cache.size_bytes - 1)
    assert cache.longest("a", other) is None
    assert cache.longest("a", third).shape[3] == 70
    cache.shrink(0)
    assert cache.size_bytes == 0


def test_a_sequence_takes_the_place_of_those_it_continues(cache):
    tokens = prompt(1, 100)
    for length in (70, 100, 80):
        cache.add("a", tokens[:length], columns(length))
    [kept] = cache._kept
    assert len(kept.tokens_n) == 100
    assert cache.size_bytes == kept.columns_2NGnD.nbytes
