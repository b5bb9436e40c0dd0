"""Requests that follow a model's weights while they change, against peft with one adapter and then another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from weaver_peft.inflight import Published

from weaver.domain import AdapterRef, Inflight
from weaver.errors import CheckpointDamaged

from .tiny import add, ask, expected_logprobs, finish, run, with_peft

GREEDY = {"temperature": 0, "max_tokens": 20}


def following(adapter, version=1, session="first", model="s:train:0", **asked):
    return replace(ask(adapter=adapter, **GREEDY | asked), inflight=Inflight(model, version, session))


def logprobs_of_a_switch(folder, first, second, request, tokens, switch):
    """Tokens before `switch` by the first adapter; the others by the second one on the first one's keys and values."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), first.folder, "first").eval()
    model.load_adapter(second.folder, "second")
    whole, cached = torch.tensor([*request.prompt_n.tolist(), *tokens]), len(request.prompt_n) + switch - 1
    with torch.no_grad():
        before = model(whole[None, :cached], use_cache=True)
        model.set_adapter("second")
        after = model(whole[None, cached:-1], past_key_values=before.past_key_values)
    logits = torch.cat([before.logits[0], after.logits[0]])[len(request.prompt_n) - 1 :]
    return logits.log_softmax(1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def test_a_running_request_goes_on_with_new_weights_on_the_columns_it_has(loop, folder, adapters):
    request = following(adapters["small"])
    future, snapshot = add(loop, request), add(loop, ask(adapter=adapters["small"], **GREEDY))
    for _ in range(7):
        loop.step()
    loop.publish("s:train:0", Published(2, adapters["all"]))
    finish(loop)
    [sequence], [still] = future.result(timeout=0).sequences, snapshot.result(timeout=0).sequences
    expected = logprobs_of_a_switch(folder, adapters["small"], adapters["all"], request, sequence.tokens.tolist(), 7)
    np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)
    unchanged = expected_logprobs(with_peft(folder, adapters["small"]), request, still)
    np.testing.assert_allclose(still.logprobs, unchanged, atol=1e-4)  # a snapshot never changes
    assert not np.allclose(expected_logprobs(with_peft(folder, adapters["small"]), request, sequence)[7:], expected[7:])


def test_requests_begin_with_the_newest_weights_there_are(loop, folder, adapters):
    loop.publish("s:train:0", Published(3, adapters["all"]))
    loop.publish("s:train:0", Published(2, adapters["small"]))  # overtaken on its way
    older, newer = following(adapters["small"], 1), following(adapters["patterns"], 4, seed=1)
    other = following(adapters["small"], 1, seed=2, model="another")
    for request, name, result in zip(
        [older, newer, other], ["all", "patterns", "small"], run(loop, older, newer, other)
    ):
        expected = expected_logprobs(with_peft(folder, adapters[name]), request, result.sequences[0])
        np.testing.assert_allclose(result.sequences[0].logprobs, expected, atol=1e-4)


def test_a_new_session_never_meets_columns_of_older_weights(loop, folder, adapters):
    running = add(loop, following(adapters["small"], length=150, max_tokens=60))
    loop.step()
    loop.publish("s:train:0", Published(2, adapters["all"]))
    same, fresh = following(adapters["all"], 2, length=150), following(adapters["all"], 2, "second", length=150)
    [shared], [own] = run(loop, same), run(loop, fresh)
    assert shared.cached_prompt_tokens == 149
    assert own.cached_prompt_tokens == 0
    assert running.done()
    expected = expected_logprobs(with_peft(folder, adapters["all"]), fresh, own.sequences[0])
    np.testing.assert_allclose(own.sequences[0].logprobs, expected, atol=1e-4)


def test_replaced_weights_are_freed(loop, adapters):
    loop.publish("s:train:0", Published(1, adapters["small"]))
    run(loop, following(adapters["small"], 1))
    loop.publish("s:train:0", Published(2, adapters["all"]))
    run(loop, following(adapters["small"], 1))
    assert "small" not in loop._adapters
    assert "all" in loop._adapters
    loop.forget("all")
    assert "all" not in loop._adapters


def test_new_weights_that_cannot_be_read_fail_those_that_follow_them_and_nobody_else(loop, adapters, tmp_path):
    following_it, other = add(loop, following(adapters["small"])), add(loop, ask(adapter=adapters["small"], **GREEDY))
    loop.step()
    loop.publish("s:train:0", Published(2, AdapterRef("gone", tmp_path / "gone")))
    finish(loop)
    with pytest.raises(CheckpointDamaged, match="gone"):
        following_it.result(timeout=0)
    assert len(other.result(timeout=0).sequences[0].tokens) == 20
