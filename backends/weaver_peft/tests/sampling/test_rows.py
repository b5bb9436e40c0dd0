from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
from weaver_peft.decoding import DecodeLoop
from weaver_peft.kv_cache import CacheShape

from weaver.domain import SampleRequest, SamplingParams, StopReason
from weaver.sampler import SampleFuture

from .tiny import (
    LIMITS,
    add,
    ask,
    expected_logprobs,
    finish,
    prompt,
    run,
    same,
)


def test_requests_join_and_leave_a_running_batch(loop, reference):
    requests = [ask(length, seed=length, max_tokens=tokens) for length, tokens in [(5, 3), (120, 20), (9, 1), (60, 9)]]
    futures = []
    for request in requests:
        futures.append(add(loop, request))
        loop.step()
    assert futures[2].done()
    finish(loop)
    for request, future in zip(requests, futures):
        sequence = future.result(timeout=0).sequences[0]
        assert len(sequence.tokens) == request.params.max_tokens
        np.testing.assert_allclose(sequence.logprobs, expected_logprobs(reference, request, sequence), atol=1e-4)
    assert loop.statistics.decode_calls < sum(request.params.max_tokens for request in requests)


def test_a_sequence_that_outgrows_its_columns_moves_and_goes_on(loop, reference):
    requests = [ask(120, seed=1, max_tokens=180), ask(5, seed=2, max_tokens=180), ask(250, seed=3, max_tokens=180)]
    for request, result in zip(requests, run(loop, *requests)):
        sequence = result.sequences[0]
        np.testing.assert_allclose(sequence.logprobs, expected_logprobs(reference, request, sequence), atol=1e-4)


def test_a_cancelled_request_leaves_at_the_next_step(loop):
    kept, cancelled, waiting = add(loop, ask()), add(loop, ask(seed=1, samples=3)), None
    loop.step()
    waiting = add(loop, ask(seed=2))
    assert cancelled.cancel()
    assert waiting.cancel()
    finish(loop)
    assert loop.statistics.drawn_tokens == 4 + 11
    assert loop.statistics.prefilled_tokens == 2 * 8
    assert kept.done()
    with pytest.raises(CancelledError):
        cancelled.result(timeout=0)


def test_a_cancelled_leader_hands_its_prompt_to_those_who_waited(base):
    loop = DecodeLoop(base, replace(LIMITS, prefill_tokens=30))
    leader, follower = add(loop, ask(length=100)), add(loop, ask(length=100, seed=0))
    loop.step()
    leader.cancel()
    finish(loop)
    assert len(follower.result(timeout=0).sequences[0].tokens) == 12


def test_more_samples_than_rows_wait_their_turn(base):
    loop = DecodeLoop(base, replace(LIMITS, rows=3))
    first, second = add(loop, ask(samples=7, max_tokens=5)), add(loop, ask(seed=1, max_tokens=5))
    finish(loop)
    assert len(first.result(timeout=0).sequences) == 7
    assert second.done()
    assert loop.statistics.decode_calls == 15


def test_rows_wait_for_memory_and_one_alone_always_runs(base):
    loop = DecodeLoop(base, replace(LIMITS, cache_bytes=1))
    futures = [add(loop, ask(length, seed=length)) for length in (10, 300, 20)]
    finish(loop)
    assert all(len(future.result(timeout=0).sequences[0].tokens) == 12 for future in futures)
    assert loop.statistics.decode_calls == 36


def test_rows_that_outgrow_the_memory_pause_and_draw_what_they_would_have(base):
    params = [SamplingParams(60, seed=seed, stop_token_ids=()) for seed in range(4)]
    requests = [SampleRequest(prompt(seed, 100), 1, each, prompt_logprobs=True) for seed, each in enumerate(params)]
    free = run(DecodeLoop(base, LIMITS), *requests)
    slot_bytes = CacheShape.of_model(base.model).slot_bytes(100)
    loop = DecodeLoop(base, replace(LIMITS, cache_bytes=4 * slot_bytes))
    for one, other in zip(free, run(loop, *requests)):
        assert same(one, other)
        np.testing.assert_allclose(one.prompt_logprobs_n, other.prompt_logprobs_n, atol=1e-5)
    assert loop.statistics.paused_rows > 0


def test_no_tokens_are_drawn_where_none_are_asked_for(loop):
    [result] = run(loop, replace(ask(max_tokens=0), prompt_logprobs=True))
    assert result.sequences[0].tokens.tolist() == []
    assert result.sequences[0].stop_reason is StopReason.LENGTH
    assert np.isfinite(result.prompt_logprobs_n[1:]).all()


def test_a_request_that_waits_knows_why_until_it_begins(base):
    loop = DecodeLoop(base, replace(LIMITS, rows=2))
    add(loop, ask(samples=2, max_tokens=2))
    waiting = SampleFuture(lambda: loop.obstacle)
    loop.add(ask(seed=1), waiting)
    loop.step()
    assert waiting.waits_for() == "2 sequences are being drawn, as many as go at once"
    finish(loop)
    assert waiting.begun
    assert waiting.waits_for() is None


def test_a_request_that_waits_for_memory_says_so(base):
    loop = DecodeLoop(base, replace(LIMITS, cache_bytes=3 << 20))
    add(loop, ask(length=400, samples=30))
    loop.step()
    running, mebibytes = len(loop._running()), loop._bytes(loop._running()) >> 20
    assert loop.obstacle == f"the cache is full: {running} sequences hold {mebibytes} of 3 MiB"
    finish(loop)
