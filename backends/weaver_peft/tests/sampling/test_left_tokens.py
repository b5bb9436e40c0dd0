"""Sampling masks, and what min_tokens bars: against numpy, from the full logits of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from weaver_peft import sequences
from weaver_peft.base_model import load_base_model
from weaver_peft.decoding import DecodeLoop
from weaver_peft.drawing import draw
from weaver_peft.kv_cache import CacheShape

from weaver.backend import ModelSource
from weaver.domain import SamplingParams, StopReason
from weaver.errors import InvalidInput

from .tiny import LIMITS, SIZES, add, finish, logits_of, run, same
from .tiny import ask as ask_tiny

VOCABULARY = SIZES["vocab_size"]
EDGE = 1e-4
"""The mass within which a token lies on the edge of top_p: rounding decides whether it stays."""


def ask(mask=False, **given):
    """Drawn with a seed: which tokens lie on the edge of a mask must not be another question each time."""
    request = ask_tiny(**given)
    return replace(request, params=replace(request.params, seed=11), sampling_mask=mask)


def left_by_numpy(logits_V, params, stops=()):
    """The logits of the distribution, -inf where nothing is left, written out."""
    scaled_V = np.array(logits_V, np.float64)
    scaled_V[list(stops)] = -np.inf
    if params.temperature == 0:
        return scaled_V
    scaled_V /= params.temperature
    order = np.argsort(-scaled_V, kind="stable")
    if params.top_k > 0:
        scaled_V[order[params.top_k :]] = -np.inf
    mass = np.exp(scaled_V - scaled_V.max())
    before = np.cumsum(mass[order]) - mass[order]
    scaled_V[order[before >= params.top_p * mass.sum()]] = -np.inf
    return scaled_V


def left_within(logits_V, params, edge, stops):
    top_p = params.top_p + edge if params.top_p < 1 else 1
    return set(np.flatnonzero(left_by_numpy(logits_V, replace(params, top_p=top_p), stops) > -np.inf).tolist())


def check(model, request, sequence, stops=()):
    """Each row of the mask, and each logprob, which is renormalised over that row."""
    tokens = [*request.prompt_n.tolist(), *sequence.tokens.tolist()]
    logits_TV = logits_of(model, tokens[:-1])[len(request.prompt_n) - 1 :].numpy()
    assert len(sequence.sampling_mask) == len(sequence.tokens) == len(logits_TV)
    rows = sequence.sampling_mask.lists()
    for place, (logits_V, token, logprob) in enumerate(zip(logits_TV, sequence.tokens, sequence.logprobs, strict=True)):
        barred = stops if place < request.params.min_tokens else ()
        told = set(rows[place] or range(len(logits_V)))
        certain, possible = (left_within(logits_V, request.params, edge, barred) for edge in (-EDGE, EDGE))
        assert certain <= told <= possible
        assert len(possible - certain) <= max(2, len(certain) / 20), "the edge is too wide to prove anything"
        assert rows[place] == sorted(rows[place])
        assert len(rows[place]) < len(logits_V)
        scale = request.params.temperature or 1.0
        over = logits_V[rows[place] or slice(None)] / scale
        assert logprob == pytest.approx(logits_V[token] / scale - np.log(np.exp(over).sum()), abs=1e-4)
    return rows


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 7},
        {"top_p": 0.8},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.9},
        {"temperature": 0.5, "top_p": 0.95},
        {"top_k": VOCABULARY},
        {"top_p": 0.9, "min_tokens": 3, "stop_token_ids": tuple(range(0, VOCABULARY, 2))},
    ],
)
def test_a_mask_is_what_a_token_was_drawn_among(loop, reference, params):
    request = ask(mask=True, samples=3, seed=4, **params)
    [result] = run(loop, request)
    rows = [check(reference, request, one, request.params.stop_token_ids) for one in result.sequences]
    assert any(map(any, rows)) is (params != {"top_k": VOCABULARY})
    [plain] = run(loop, replace(request, sampling_mask=False))
    assert all(one.sampling_mask is None for one in plain.sequences)


@pytest.mark.demo_model
def test_masks_of_the_demo_model_are_those_of_its_logits_in_transformers(capsys):
    base = load_base_model(ModelSource("demo", "demo", device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(base.facts.tokenizer_location, dtype=torch.float32)
    request = ask(mask=True, seed=3, length=20, top_p=0.95, min_tokens=4, stop_token_ids=None)
    [result] = run(DecodeLoop(base, LIMITS), request)
    rows = check(model, request, result.sequences[0], base.facts.end_token_ids)
    with capsys.disabled():
        print(" tokens left, of", base.facts.vocabulary_size, "by row:", list(map(len, rows)))
    assert max(map(len, rows)) > 100


def test_where_the_whole_vocabulary_is_left_a_row_is_empty(loop):
    """Also greedily, whose logprobs are the model's own whatever top_k and top_p say."""
    asked = [
        ask(mask=True, seed=1),
        ask(mask=True, seed=2, temperature=0, top_k=3, top_p=0.5),
        ask(mask=True, seed=3, min_tokens=4),  # nothing stops
        ask(mask=True, seed=4, temperature=1e6, top_p=1 - 1e-9),  # which cuts nothing off
    ]
    for result in run(loop, *asked):
        assert result.sequences[0].sampling_mask.lists() == [[]] * 12


def test_requests_with_and_without_masks_share_steps(base, reference):
    """And rows that were paused to make room have the rows of before."""
    asked = [ask(mask=seed % 2 == 0, seed=seed, length=100, top_p=0.7, max_tokens=40) for seed in range(4)]
    slot_bytes = CacheShape.of_model(base.model).slot_bytes(100)
    loop = DecodeLoop(base, replace(LIMITS, cache_bytes=4 * slot_bytes))
    found = run(loop, *asked)
    assert loop.statistics.paused_rows
    for request, result in zip(asked, found, strict=True):
        if request.sampling_mask:
            check(reference, request, result.sequences[0])
        else:
            assert result.sequences[0].sampling_mask is None
    plain = run(DecodeLoop(base, LIMITS), *[replace(one, sampling_mask=False) for one in asked])
    assert all(same(one, other) for one, other in zip(found, plain, strict=True))


def test_ties_are_in_the_mask_as_they_can_be_drawn():
    params = SamplingParams(1, top_k=3)
    drawn = draw(torch.zeros(40, 50), [params] * 40, np.linspace(0, 0.99, 40).tolist(), [0] * 40, telling=[0, 7])
    assert {row: left.tolist() for row, left in drawn.left.items()} == {0: [0, 1, 2], 7: [0, 1, 2]}
    assert set(drawn.tokens) == {0, 1, 2}


def test_a_models_own_minus_infinity_is_no_mask():
    logits_RV = torch.zeros(2, 50)
    logits_RV[:, 30:] = -torch.inf
    drawn = draw(logits_RV, [SamplingParams(1), SamplingParams(1, top_p=0.99)], [0.5, 0.5], [0, 0], telling=[0, 1])
    assert [drawn.left[0].tolist(), drawn.left[1].tolist()] == [[], list(range(30))]
    assert drawn.left[1].dtype == np.int32


def test_masks_that_are_too_large_fail_their_own_request(base, monkeypatch):
    monkeypatch.setattr(sequences, "MOST_LEFT", 60)
    loop = DecodeLoop(base, LIMITS)
    large = add(loop, ask(mask=True, top_k=6))
    last = add(loop, ask(mask=True, top_k=61, max_tokens=1))  # with the token that ends it
    right = add(loop, ask(mask=True, top_k=5))
    finish(loop)
    for future in (large, last):
        with pytest.raises(InvalidInput, match="return_sampling_mask: the masks have more than 60 tokens together"):
            future.result(timeout=0)
    assert len(right.result(timeout=0).sequences[0].sampling_mask.tokens_c) == 60


# min_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_stop_token_is_among_the_first_min_tokens(loop, reference, temperature):
    """Half of the vocabulary stops, so free draws end early; the logprobs are of the other half."""
    stops = tuple(range(1, VOCABULARY, 2))
    request = ask(mask=True, samples=8, temperature=temperature, max_tokens=20, min_tokens=9, stop_token_ids=stops)
    [result] = run(loop, request)
    for sequence in result.sequences:
        tokens = sequence.tokens.tolist()
        assert len(tokens) > 9
        assert not {*tokens[:9]} & {*stops}
        assert sequence.stop_reason is StopReason.STOP if tokens[-1] % 2 else len(tokens) == 20
        assert not {*tokens[:-1]} & {*stops}
        rows = check(reference, request, sequence, stops)
        assert rows[:9] == [list(range(0, VOCABULARY, 2))] * 9
        assert not any(rows[9:])
    [free] = run(loop, replace(request, params=replace(request.params, min_tokens=0)))
    assert any(len(sequence.tokens) <= 9 for sequence in free.sequences)


def test_without_stop_tokens_of_its_own_the_models_end_is_barred(base):
    """The one token that the model would say at once."""
    [free] = run(DecodeLoop(base, LIMITS), ask(temperature=0))
    first = int(free.sequences[0].tokens[0])
    ending = replace(base, facts=replace(base.facts, end_token_ids=(first,)))
    barred = ask(temperature=0, min_tokens=4, stop_token_ids=None)
    [result] = run(DecodeLoop(ending, LIMITS), barred)
    assert first not in result.sequences[0].tokens[:4].tolist()
    [stopped] = run(DecodeLoop(ending, LIMITS), replace(barred, params=replace(barred.params, min_tokens=0)))
    assert stopped.sequences[0].tokens.tolist() == [first]
    [without] = run(DecodeLoop(ending, LIMITS), replace(barred, params=replace(barred.params, stop_token_ids=())))
    assert same(without, free)


def test_what_is_left_is_drawn_as_often_as_it_is_likely():
    logits_V = torch.randn(20, generator=torch.Generator().manual_seed(0)) * 2
    params, count = SamplingParams(1, 1.3, 9, 0.9), 20_000
    uniforms = np.random.default_rng(0).random(count).tolist()
    drawn = draw(
        logits_V.repeat(count, 1), [params] * count, uniforms, [0] * count, {row: {3, 8} for row in range(count)}
    )
    expected_V = left_by_numpy(logits_V.numpy(), params, [3, 8])
    share_V = np.exp(expected_V - np.log(np.exp(expected_V).sum()))
    found_V = np.bincount(drawn.tokens, minlength=20) / count
    assert np.abs(found_V - share_V).max() < 0.02
    assert not found_V[share_V == 0].any()
    np.testing.assert_allclose(drawn.logprobs, np.log(share_V[drawn.tokens]), atol=1e-5)


def test_a_row_that_bars_does_not_change_its_neighbours(loop):
    stops = tuple(range(1, VOCABULARY, 2))
    plain = ask(seed=5, top_p=0.9)
    [alone] = run(loop, plain)
    [beside, _] = run(loop, plain, ask(seed=6, min_tokens=12, stop_token_ids=stops))
    assert same(alone, beside)
    np.testing.assert_allclose(beside.sequences[0].logprobs, alone.sequences[0].logprobs, atol=1e-5)


def test_where_every_token_is_barred_the_request_fails_alone(loop):
    """The door refuses it; a sampler draws no token of no distribution."""
    wrong = add(loop, ask(min_tokens=2, stop_token_ids=tuple(range(VOCABULARY))))
    [right] = run(loop, ask())
    assert len(right.sequences[0].tokens) == 12
    with pytest.raises(InvalidInput, match="no token can be drawn"):
        wrong.result(timeout=0)
