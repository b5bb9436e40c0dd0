from dataclasses import replace

import numpy as np
from weaver_peft.decoding import DecodeLoop
from weaver_peft.prompt_logprobs import CHUNK_ELEMENTS

from weaver.domain import SampleRequest, SamplingParams

from .tiny import (
    LIMITS,
    SIZES,
    add,
    ask,
    expected_logprobs,
    expected_prompt_logprobs,
    finish,
    logits_of,
    prompt,
    run,
    same,
)


def test_samples_of_one_prompt_share_one_prefill(loop):
    [result] = run(loop, ask(length=100, samples=16))
    assert loop.statistics.prefilled_tokens == 99
    assert loop.statistics.decode_calls == 12
    assert len({tuple(sequence.tokens.tolist()) for sequence in result.sequences}) > 1


def test_requests_with_one_prompt_share_its_prefill_at_once_and_later(loop):
    first = [add(loop, ask(length=100)) for _ in range(2)]
    loop.step()
    later = add(loop, ask(length=100))
    finish(loop)
    assert all(future.done() for future in [*first, later])
    assert loop.statistics.prefilled_tokens == 99


def test_a_conversation_that_goes_on_prefills_only_what_is_new(loop, reference):
    first = add(loop, ask(length=150, temperature=0, max_tokens=30))
    for _ in range(20):
        loop.step()
    [row] = loop._decoding
    longer = SampleRequest(np.concatenate([row.tokens_L, prompt(1, 40)]), 1, SamplingParams(8, stop_token_ids=()))
    [result] = run(loop, longer)
    assert first.done()
    assert loop.statistics.prefilled_tokens == 149 + 40
    np.testing.assert_allclose(
        result.sequences[0].logprobs, expected_logprobs(reference, longer, result.sequences[0]), atol=1e-4
    )


def test_prompts_that_begin_alike_share_the_beginning(loop, reference):
    beginning = prompt(0, 100)
    requests = [
        SampleRequest(np.concatenate([beginning, prompt(seed, 10)]), 1, SamplingParams(4, stop_token_ids=()))
        for seed in (1, 2, 3)
    ]
    for request, result in zip(requests, run(loop, *requests)):
        expected = expected_logprobs(reference, request, result.sequences[0])
        np.testing.assert_allclose(result.sequences[0].logprobs, expected, atol=1e-4)
    assert loop.statistics.prefilled_tokens == 109 + 9 + 9


def test_prompt_logprobs_are_unscaled_and_begin_with_nan(loop, reference):
    request = replace(ask(length=50, temperature=0.3, top_k=2, max_tokens=1, samples=2), prompt_logprobs=True)
    [result] = run(loop, request)
    expected = expected_prompt_logprobs(reference, request.prompt_n)
    assert np.isnan(result.prompt_logprobs_n[0])
    np.testing.assert_allclose(result.prompt_logprobs_n[1:], expected, atol=1e-4)
    assert len(result.prompt_logprobs_n) == 50
    assert result.topk_prompt_logprobs is None
    assert len(result.sequences) == 2


def test_prompt_logprobs_do_not_depend_on_the_chunks_they_are_computed_in(base, monkeypatch):
    request = replace(ask(length=50), prompt_logprobs=True, topk_prompt_logprobs=2)
    [whole] = run(DecodeLoop(base, LIMITS), request)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 7 * SIZES["vocab_size"])
    [chunked] = run(DecodeLoop(base, LIMITS), request)
    np.testing.assert_allclose(whole.prompt_logprobs_n, chunked.prompt_logprobs_n, atol=1e-5)
    assert np.array_equal(whole.topk_prompt_logprobs.token_ids_nk, chunked.topk_prompt_logprobs.token_ids_nk)


def test_prompt_logprobs_are_complete_where_another_row_has_the_prompt(loop):
    add(loop, ask(length=50))
    loop.step()
    [result] = run(loop, replace(ask(length=50), prompt_logprobs=True))
    assert np.isfinite(result.prompt_logprobs_n[1:]).all()


def test_a_prompt_of_one_token_has_no_logprob(loop):
    [result] = run(loop, replace(ask(length=1), prompt_logprobs=True))
    assert np.isnan(result.prompt_logprobs_n).tolist() == [True]


def test_the_likeliest_prompt_tokens_are_the_models_own(loop, reference):
    request = replace(ask(length=20), topk_prompt_logprobs=3)
    [result] = run(loop, request)
    top, expected = result.topk_prompt_logprobs, logits_of(reference, request.prompt_n).log_softmax(1)[:-1].topk(3)
    assert top.token_ids_nk[0].tolist() == [0, 0, 0]
    assert np.isnan(top.logprobs_nk[0]).all()
    assert top.token_ids_nk[1:].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(top.logprobs_nk[1:], expected.values, atol=1e-4)
    assert top.token_ids_nk.dtype == np.int32
    assert result.prompt_logprobs_n is None


def test_a_long_prompt_in_pieces_gives_what_it_gives_in_one(base, reference):
    request = replace(ask(length=150, temperature=0), prompt_logprobs=True)
    [whole] = run(DecodeLoop(base, LIMITS), request)
    loop = DecodeLoop(base, replace(LIMITS, prefill_tokens=40, busy_prefill_tokens=7))
    future = add(loop, request)
    loop.step()
    assert loop.statistics.prefilled_tokens == 40  # nobody is held up
    finish(loop)
    pieces = future.result(timeout=0)
    assert same(whole, pieces)
    np.testing.assert_allclose(whole.prompt_logprobs_n, pieces.prompt_logprobs_n, atol=1e-4)
    expected = expected_logprobs(reference, request, pieces.sequences[0])
    np.testing.assert_allclose(pieces.sequences[0].logprobs, expected, atol=1e-4)


def test_rows_go_on_drawing_while_a_long_prompt_is_prefilled(base):
    loop = DecodeLoop(base, replace(LIMITS, busy_prefill_tokens=10))
    short, long = add(loop, ask(max_tokens=9)), None
    loop.step()
    long = add(loop, ask(length=100, seed=1))
    for _ in range(8):
        loop.step()
    assert short.done()
    assert not long.done()
    assert loop.statistics.prefilled_tokens == 8 + 80
