"""What can be asked about a prompt and about drawn tokens, against transformers' own logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from weaver_peft import prompt_logprobs
from weaver_peft.decoding import DecodeLoop

from weaver.domain import PromptTargets

from .tiny import LIMITS, add, ask, distribution, expected_prompt_logprobs, finish, logits_of, run


def dense(table_mK):
    """All cells of a table."""
    row_c, column_c = np.divmod(np.arange(table_mK.size), table_mK.shape[1])
    return PromptTargets(table_mK.shape, row_c, column_c, table_mK.ravel())


@pytest.fixture
def scored_rows(monkeypatch):
    """How many rows of logits have been computed for prompts."""
    counts = []
    original = prompt_logprobs.output_logits

    def counting(base, hidden_TH, segments):
        counts.append(len(hidden_TH))
        return original(base, hidden_TH, segments)

    monkeypatch.setattr(prompt_logprobs, "output_logits", counting)
    return counts


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "top_k": 3}, {"temperature": 0}, {"top_p": 0.6}], ids=repr)
def test_the_likeliest_tokens_are_those_of_what_was_drawn_from(loop, reference, params):
    request = replace(ask(length=9, samples=2, **params), topk_sample_logprobs=5)
    [result] = run(loop, request)
    for sequence in result.sequences:
        tokens = [*request.prompt_n.tolist(), *sequence.tokens.tolist()]
        for row, logits_V in enumerate(logits_of(reference, tokens[:-1])[8:]):
            expected = distribution(logits_V, request.params).log().topk(5)
            possible = expected.values > -np.inf
            found = sequence.top_logprobs.logprobs_nk[row]
            np.testing.assert_allclose(found[: possible.sum()], expected.values[possible], atol=1e-4)
            assert np.isnan(found[possible.sum() :]).all()
            ids = sequence.top_logprobs.token_ids_nk[row, : possible.sum()]
            assert ids.tolist() == expected.indices[possible].tolist()
            if sequence.tokens[row] in ids:
                assert found[list(ids).index(sequence.tokens[row])] == pytest.approx(sequence.logprobs[row], abs=1e-6)


def test_likeliest_tokens_are_there_only_where_they_are_asked_for(loop):
    plain, asked = run(loop, ask(), replace(ask(seed=1), topk_sample_logprobs=1))
    assert plain.sequences[0].top_logprobs is None
    assert asked.sequences[0].top_logprobs.logprobs_nk.shape == (12, 1)


@pytest.mark.parametrize("pieces", [1024, 7])
def test_targets_are_scored_at_the_position_after_their_row(base, reference, pieces):
    rng = np.random.default_rng(3)
    request = replace(ask(length=30, temperature=0.3, top_k=2), prompt_logprobs=True)
    table_mK = rng.integers(-1, 199, (29, 3))
    table_mK[4] = -1
    table_mK[:, 0] = request.prompt_n[1:]
    table_mK[7, 0] = -1
    request = replace(request, prompt_targets=dense(table_mK))
    [result] = run(DecodeLoop(base, replace(LIMITS, prefill_tokens=pieces)), request)
    expected_nV = logits_of(reference, request.prompt_n).log_softmax(1)
    found_mK = result.target_logprobs.logprobs_c.reshape(29, 3)
    for (row, column), token in np.ndenumerate(table_mK):
        expected = 0.0 if token == -1 else expected_nV[row, token].item()
        assert found_mK[row, column] == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(result.prompt_logprobs_n[1:], expected_nV[:-1].gather(
        1, torch.tensor(request.prompt_n[1:, None]))[:, 0], atol=1e-4)  # fmt: skip


def test_only_the_positions_that_are_asked_about_go_through_the_output_layer(loop, reference, scored_rows):
    prompt = ask(length=40)
    sparse = PromptTargets((39, 10**9), np.array([9, 9, 30]), np.array([4, 10**8, 0]), np.array([17, -1, 18]), True)
    [result] = run(loop, replace(prompt, prompt_targets=sparse))
    assert sum(scored_rows) == 2
    expected_nV = logits_of(reference, prompt.prompt_n).log_softmax(1)
    expected = [expected_nV[9, 17], 0.0, expected_nV[30, 18]]
    np.testing.assert_allclose(result.target_logprobs.logprobs_c, expected, atol=1e-4)
    scored_rows.clear()
    [result] = run(loop, replace(prompt, prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=5))
    assert sum(scored_rows) == 5
    assert np.isnan(result.prompt_logprobs_n[:35]).all()
    assert np.isnan(result.topk_prompt_logprobs.logprobs_nk[:35]).all()
    np.testing.assert_allclose(
        result.prompt_logprobs_n[35:], expected_prompt_logprobs(reference, prompt.prompt_n)[34:], atol=1e-4
    )
    top = expected_nV[34:39].topk(2)
    assert result.topk_prompt_logprobs.token_ids_nk[35:].tolist() == top.indices.tolist()
    np.testing.assert_allclose(result.topk_prompt_logprobs.logprobs_nk[35:], top.values, atol=1e-4)


def test_what_comes_before_the_scored_end_of_a_prompt_is_copied(loop, reference):
    first = add(loop, ask(length=150, max_tokens=60))
    loop.step()
    assert loop.statistics.prefilled_tokens == 149
    [result] = run(loop, replace(ask(length=150), prompt_logprobs=True, prompt_logprobs_last_n=10))
    assert first.done()
    assert loop.statistics.prefilled_tokens == 149 + 10
    assert result.cached_prompt_tokens == 139
    expected = expected_prompt_logprobs(reference, ask(length=150).prompt_n)
    np.testing.assert_allclose(result.prompt_logprobs_n[140:], expected[139:], atol=1e-4)


def test_cached_prompt_tokens_are_those_that_were_copied_and_no_others(loop):
    first = add(loop, ask(length=100, samples=4))
    loop.step()
    again = add(loop, ask(length=100, samples=3))
    scored = add(loop, replace(ask(length=100), prompt_logprobs=True))
    finish(loop)
    assert first.result(timeout=0).cached_prompt_tokens == 0  # its own samples share, and that is no hit
    assert again.result(timeout=0).cached_prompt_tokens == 99  # the last token is always computed
    assert scored.result(timeout=0).cached_prompt_tokens == 0  # every position had to be seen


def test_alternatives_are_draws_from_the_models_distribution_at_the_requests_temperature(loop, reference):
    request = replace(ask(length=4, temperature=1.7, top_k=1, top_p=0.01, seed=5), prompt_alternatives=20_000)
    [result] = run(loop, request)
    drawn, expected_mV = result.prompt_alternatives, logits_of(reference, request.prompt_n)[:-1]
    assert drawn.tokens_mk.shape == drawn.logprobs_mk.shape == (3, 20_000)
    unscaled = expected_mV.log_softmax(1).gather(1, torch.from_numpy(drawn.tokens_mk))
    np.testing.assert_allclose(drawn.logprobs_mk, unscaled, atol=1e-4)
    for tokens_k, logits_V in zip(drawn.tokens_mk, expected_mV):
        frequencies = np.bincount(tokens_k, minlength=199) / 20_000
        expected = (logits_V / 1.7).softmax(0).numpy()
        assert np.abs(frequencies - expected).sum() / 2 < 0.06  # 0.04 at most is what chance makes of 20,000 draws


def test_alternatives_of_a_seed_are_the_same_in_pieces_and_greedy_ones_are_the_likeliest(base, reference):
    request = replace(ask(length=50), prompt_alternatives=3)
    seeded = replace(request, params=replace(request.params, seed=11))
    [whole] = run(DecodeLoop(base, LIMITS), seeded)
    [pieces] = run(DecodeLoop(base, replace(LIMITS, prefill_tokens=9)), seeded)
    assert np.array_equal(whole.prompt_alternatives.tokens_mk, pieces.prompt_alternatives.tokens_mk)
    assert len({tuple(row) for row in whole.prompt_alternatives.tokens_mk.T.tolist()}) == 3
    [greedy] = run(DecodeLoop(base, LIMITS), replace(request, params=replace(request.params, temperature=0)))
    likeliest = logits_of(reference, request.prompt_n)[:-1].argmax(1)
    assert greedy.prompt_alternatives.tokens_mk.tolist() == [[token] * 3 for token in likeliest.tolist()]


def test_a_prompt_of_one_token_has_no_alternatives(loop):
    [result] = run(loop, replace(ask(length=1), prompt_alternatives=2))
    assert result.prompt_alternatives.tokens_mk.shape == (0, 2)
