"""What a request can ask for, and what is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
from engines import DRAWN, GREEDY, ask, draw, open_engine, tokens

from weaver.domain import PromptTargets, SamplingParams, StopReason
from weaver.errors import InvalidInput
from weaver.testing.reference import END_TOKEN, distribution

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("temperature", [0.004, 1.0, 2.7])
def test_temperatures_that_vllm_would_change_or_refuse_are_drawn_at(sampler, references, temperature):
    """It lifts those below 0.01, and refuses those above 2."""
    request = ask(0, DRAWN, temperature=temperature, samples=4)
    for sequence in draw(sampler, request)[0].sequences:
        expected = references[None].drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
        assert np.abs(sequence.logprobs - expected).max() < 1e-3


def test_a_temperature_that_is_drawn_greedily_is_refused(sampler):
    with pytest.raises(InvalidInput, match=r"sampling_params.temperature is 1e-06; the sampler 'vllm' takes 0 \(gree"):
        draw(sampler, ask(0, temperature=1e-6))


def test_greedy_and_drawn_rows_share_steps(sampler, references):
    """Each has the logprobs of its own distribution."""
    kinds = [GREEDY, DRAWN, SamplingParams(12, 0.7, 5, 0.9, 3, ()), SamplingParams(12, 1.3, -1, 0.5, 4, ())]
    requests = [ask(seed, params, topk_sample_logprobs=6) for seed, params in enumerate(kinds)]
    for request, result in zip(requests, draw(sampler, *requests), strict=True):
        [sequence] = result.sequences
        expected = references[None].drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
        assert np.abs(sequence.logprobs - expected).max() < 1e-4
        _check_top(references[None], request, sequence)


def _check_top(reference, request, sequence):
    """The likeliest of what could be drawn, and NaN where fewer can."""
    context = [*request.prompt_n.tolist(), *sequence.tokens.tolist()][:-1]
    rows = reference.logits(context)[len(request.prompt_n) - 1 :]
    for place, row in enumerate(rows):
        wanted = np.sort(distribution(row, request.params).numpy())[::-1][:6]
        found = sequence.top_logprobs.logprobs_nk[place]
        assert (np.isnan(found) == (wanted == 0)).all()
        possible = wanted > 0
        assert np.abs(np.exp(found[possible]) - wanted[possible]).max() < 1e-4


@pytest.mark.parametrize("params", [GREEDY, DRAWN, SamplingParams(12, 0.7, 20, 0.9, 3, ())])
def test_what_min_tokens_keeps_back_has_no_probability(sampler, references, params):
    """Half of the vocabulary stops. Rows that wait and rows that do not share steps."""
    stops = tuple(range(1, 128, 2))
    waiting = ask(0, params, samples=4, min_tokens=6, stop_token_ids=stops, topk_sample_logprobs=6)
    free = ask(0, params, samples=4)
    for request, result in zip((waiting, free), draw(sampler, waiting, free), strict=True):
        for sequence in result.sequences:
            expected = references[None].drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
            assert np.abs(sequence.logprobs - expected).max() < 1e-4
    for sequence in draw(sampler, waiting)[0].sequences:
        *before, last = sequence.tokens.tolist()
        assert len(before) >= 6
        assert not {*before} & {*stops}
        assert sequence.stop_reason is (StopReason.STOP if last % 2 else StopReason.LENGTH)
        assert not {*sequence.top_logprobs.token_ids_nk[:6].ravel().tolist()} & {*stops}


def test_the_models_end_is_kept_back_where_it_stops_and_only_there(sampler, references):
    """vLLM alone would keep it back whatever stops."""
    request = ask(1, DRAWN, samples=60, temperature=5.0, min_tokens=12)
    [free] = draw(sampler, request)
    came = [END_TOKEN in sequence.tokens for sequence in free.sequences]
    assert any(came), "no sample has it, so this proves nothing"
    [kept] = draw(sampler, replace(request, params=replace(request.params, stop_token_ids=None)))
    assert not any(END_TOKEN in sequence.tokens for sequence in kept.sequences)


def test_masks_are_told_where_nothing_was_cut_off_and_refused_elsewhere(sampler):
    for params in (DRAWN, replace(GREEDY, top_k=3, top_p=0.5)):
        [result] = draw(sampler, ask(0, params, sampling_mask=True))
        assert result.sequences[0].sampling_mask.lists() == [[]] * 12
    for changed in ({"top_k": 5}, {"top_p": 0.9}, {"min_tokens": 2}):
        with pytest.raises(InvalidInput, match=r"return_sampling_mask: the sampler 'vllm' does not tell"):
            draw(sampler, ask(0, DRAWN, sampling_mask=True, **changed))
    assert draw(sampler, ask(0, DRAWN))[0].sequences[0].sampling_mask is None


def test_as_many_of_the_likeliest_as_there_are_tokens(sampler, references):
    [result] = draw(sampler, ask(0, topk_sample_logprobs=128, topk_prompt_logprobs=128))
    whole = references[None].logits(ask(0).prompt_n).log_softmax(1).numpy()
    found = result.topk_prompt_logprobs
    assert np.abs(found.logprobs_nk[1:] - np.take_along_axis(whole[:-1], found.token_ids_nk[1:], 1)).max() < 1e-4
    assert sorted(result.sequences[0].top_logprobs.token_ids_nk[0]) == list(range(128))


def test_a_prompt_that_comes_in_pieces_is_scored_as_a_whole(vllm_python, folder, references, adapters, sampler):
    """A step takes 32 tokens here, and there is room for few: requests are put off and begin again. With a seed that
    ended the engine on CPUs."""
    small = open_engine(folder, max_num_batched_tokens=32, max_num_seqs=8, num_gpu_blocks_override=12)
    rows, tokens_c = np.array([3, 3, 90, 148]), np.array([5, 6, -1, 7])
    targets = PromptTargets((149, 2), rows, np.array([0, 1, 0, 1]), tokens_c, is_sparse=True)
    asked = [(name, adapters.get(name)) for name in ("whole", None, "head")]
    more = {"prompt_logprobs": True, "topk_prompt_logprobs": 2, "prompt_targets": targets, "prompt_alternatives": 3}
    requests = [ask(1, length=150, max_tokens=70, adapter=adapter, **more) for _, adapter in asked]
    for (name, _), request, result in zip(asked, requests, draw(small, *requests), strict=True):
        whole_nV = references[name].logits(request.prompt_n).log_softmax(1).numpy()
        own = whole_nV[np.arange(149), request.prompt_n[1:]]
        assert np.abs(result.prompt_logprobs_n[1:] - own).max() < 1e-4
        expected = np.where(tokens_c < 0, 0, whole_nV[rows, tokens_c])
        assert np.abs(result.target_logprobs.logprobs_c - expected).max() < 1e-4
        likeliest = whole_nV[:-1].argmax(1)
        assert (result.prompt_alternatives.tokens_mk == likeliest[:, None]).all()
        assert tokens(result) == [references[name].greedy(request.prompt_n, 70)]
    seeded = [ask(seed, DRAWN, length=100, samples=3, max_tokens=30) for seed in range(3)]
    assert list(map(tokens, draw(small, *seeded))) == list(map(tokens, draw(sampler, *seeded)))
    small.close()


def test_alternatives_follow_the_temperature_and_their_logprobs_do_not(sampler, references):
    request = ask(2, DRAWN, temperature=2.0, prompt_alternatives=400, length=4)
    [found], [again] = draw(sampler, request), draw(sampler, request)
    drawn = found.prompt_alternatives
    assert (drawn.tokens_mk == again.prompt_alternatives.tokens_mk).all()
    whole = references[None].logits(request.prompt_n)[:-1]
    unscaled = np.take_along_axis(whole.log_softmax(1).numpy(), drawn.tokens_mk, 1)
    assert np.abs(drawn.logprobs_mk - unscaled).max() < 1e-4
    for row in range(3):
        wanted_V = (whole[row] / 2).softmax(0).numpy()
        counts_V = np.bincount(drawn.tokens_mk[row], minlength=128)
        assert (np.abs(counts_V - 400 * wanted_V) < 5 * np.sqrt(400 * wanted_V) + 1).all()


def test_samples_of_one_prompt_share_its_columns(sampler):
    """And tell of the first, which had to compute what nobody had."""
    request = ask(3, DRAWN, length=100, samples=8)
    [first], [second] = draw(sampler, request), draw(sampler, request)
    assert (first.cached_prompt_tokens, second.cached_prompt_tokens) == (0, 96)
    assert tokens(first) == tokens(second)
    assert len(set(map(str, tokens(first)))) == 8


def test_a_request_longer_than_the_cache_is_refused(vllm_python, folder):
    narrow = open_engine(folder, max_model_len=64)
    with pytest.raises(InvalidInput, match=r"prompt's 60 tokens and sampling_params.max_tokens 12 .* the 64 that"):
        draw(narrow, ask(0, length=60))
    assert len(tokens(draw(narrow, ask(0, length=52))[0])[0]) == 12
    narrow.close()


def test_stop_strings_without_a_tokenizer_fail_that_request_alone(sampler):
    beside = sampler.sample(ask(0))
    with pytest.raises(InvalidInput, match="stop strings need a tokenizer, and 'tiny' has none"):
        draw(sampler, ask(0, stop_strings=("x",)))
    assert len(beside.result(60).sequences[0].tokens) == 12


def test_a_cancelled_request_is_no_longer_drawn(sampler, heard):
    """Nothing comes of it, though what was asked later and takes as long is done."""
    long = ask(0, DRAWN, samples=8, max_tokens=240)
    begun = heard.of("begun")
    cancelled = sampler.sample(long)
    number = heard.next("begun", begun)
    assert cancelled.cancel()
    [result] = draw(sampler, long)
    assert [len(one) for one in tokens(result)] == [240] * 8
    assert number not in heard.of("result")
