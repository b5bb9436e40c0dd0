"""Streams: the same answer in pieces, as the tokens come, and an end to drawing when nobody reads."""

import json
import socket
import threading
from dataclasses import replace

import httpx
import openai
import pytest

from tests.serving import serving
from weaver.errors import LossFailed

from .conftest import CONTEXT, MODEL, open_service

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Häagen 東?"}], "max_tokens": 40, "seed": 5}


def chunks(client, **more):
    return list(client.chat.completions.create(**(ASKED | more), stream=True))


def contents(told, index=0):
    entries = [choice for chunk in told for choice in chunk.choices if choice.index == index]
    return "".join(entry.delta.content or "" for entry in entries)


@pytest.mark.parametrize(
    "more", [{}, {"n": 3}, {"stop": ["e", "th", "a"]}, {"extra_body": {"skip_special_tokens": False}}]
)
def test_pieces_make_the_same_answer(more, client):
    whole = client.chat.completions.create(**(ASKED | more))
    told = chunks(client, **more)
    for choice in whole.choices:
        assert contents(told, choice.index) == choice.message.content
        mine = [entry for chunk in told for entry in chunk.choices if entry.index == choice.index]
        assert [entry.finish_reason for entry in mine][-1] == choice.finish_reason
        assert [entry.finish_reason for entry in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[0].delta.role == "assistant"
        if "n" in more:
            assert mine[-1].nexrl_train["response_tokens"] == choice.nexrl_train["response_tokens"]
    assert {chunk.id for chunk in told} == {told[0].id}
    assert {chunk.object for chunk in told} == {"chat.completion.chunk"}


def test_the_last_chunk_has_what_to_train_on_and_usage_where_it_is_asked_for(client):
    whole = client.chat.completions.create(**ASKED)
    plain, counted = chunks(client), chunks(client, stream_options={"include_usage": True})
    for told in (plain, counted):
        assert told[-1].nexrl_train["response_tokens"] == whole.nexrl_train["response_tokens"]
        assert told[-1].weight_version == MODEL
        assert not any("nexrl_train" in chunk.model_extra for chunk in told[:-1])
    assert not any("usage" in chunk.model_fields_set for chunk in plain)
    assert counted[-1].choices == []
    assert counted[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in counted[:-1])


def test_every_token_is_told_once_with_its_logprob(client):
    told = chunks(client, logprobs=True, top_logprobs=2, extra_body={"return_token_ids": True})
    record = told[-1].nexrl_train
    entries = [choice for chunk in told for choice in chunk.choices]
    ids = [token for entry in entries for token in entry.token_ids]
    logprobs = [one for entry in entries if entry.logprobs for one in entry.logprobs.content]
    assert ids == record["response_tokens"]
    assert [one.logprob for one in logprobs] == pytest.approx(record["response_logprobs"], abs=1e-6)
    assert all(len(one.top_logprobs) == 2 for one in logprobs)


def test_tokens_come_while_others_are_drawn(client):
    """Far more chunks than could be told of a sample that is there at once."""
    told = chunks(client, max_tokens=300, extra_body={"return_token_ids": True})
    assert len([chunk for chunk in told if chunk.choices and chunk.choices[0].token_ids]) > 30


def test_the_events_are_as_server_sent_events_are_written(url):
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=ASKED | {"stream": True}, timeout=120) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["model"] == MODEL for line in lines[:-1])


def test_completions_stream_too(client):
    asked = {"model": MODEL, "prompt": ["the", "a"], "max_tokens": 20, "seed": 1, "logprobs": 1}
    whole = client.completions.create(**asked)
    told = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [entry for chunk in told for entry in chunk.choices if entry.index == choice.index]
        assert "".join(entry.text for entry in mine) == choice.text
        joined = [offset for entry in mine if entry.logprobs for offset in entry.logprobs.text_offset]
        assert joined == choice.logprobs.text_offset
        assert mine[-1].nexrl_train["response_tokens"] == choice.nexrl_train["response_tokens"]
    assert told[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_refusal_has_its_status_before_the_stream_begins(client):
    with pytest.raises(openai.BadRequestError):
        chunks(client, logit_bias={"1": 1})


class WatchedSampler:
    """Asked in the place of a service's own sampler: it tells when a request came and when it was given up."""

    def __init__(self, sampler):
        self._sampler = sampler
        self.begun, self.cancelled = threading.Event(), threading.Event()

    def sample(self, request):
        future = self._sampler.sample(request)
        future.add_done_callback(lambda done: self.cancelled.set() if done.cancelled() else None)
        self.begun.set()
        return future

    def __getattr__(self, name):
        return getattr(self._sampler, name)


@pytest.fixture
def watched(folders, tmp_path):
    service = open_service(folders, tmp_path)
    inner = WatchedSampler(service._base_models.sampler(MODEL))
    service._base_models._samplers[MODEL] = inner
    try:
        with serving(service) as address:
            yield address, inner
    finally:
        service.close()


def long_request(**more):
    """One that takes long: many samples to the end of the context."""
    return ASKED | {"max_tokens": CONTEXT - 100, "n": 128, "ignore_eos": True} | more


def test_a_client_that_leaves_a_stream_ends_the_drawing(watched):
    address, sampler = watched
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=long_request(stream=True), timeout=120) as answer:
        lines = answer.iter_lines()
        while "role" in next(line for line in lines if line):
            pass
    assert sampler.cancelled.wait(60)


def test_a_client_that_leaves_before_its_answer_ends_the_drawing(watched):
    address, sampler = watched
    httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=120)  # the tokenizer and the model are loaded
    sampler.begun.clear()
    body = json.dumps(long_request()).encode()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert sampler.begun.wait(60)
        assert not sampler.cancelled.is_set()
    assert sampler.cancelled.wait(60)


class FailingSampler:
    """Tells some tokens, then fails."""

    def __init__(self, sampler):
        self._sampler = sampler

    def sample(self, request):
        future = self._sampler.sample(request)
        outer = type(future)()
        future.add_done_callback(lambda done: outer.set_exception(LossFailed("a cosmic ray")))
        return outer

    def __getattr__(self, name):
        return getattr(self._sampler, name)


def test_what_fails_on_the_way_is_told_in_the_stream(folders, tmp_path):
    service = open_service(folders, tmp_path)
    service._base_models._samplers[MODEL] = FailingSampler(service._base_models.sampler(MODEL))
    try:
        with serving(service) as address:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
            with pytest.raises(openai.APIError, match="a cosmic ray"):
                chunks(client)
            with pytest.raises(openai.InternalServerError, match="a cosmic ray"):
                client.chat.completions.create(**ASKED)
    finally:
        service.close()


class SilentSampler:
    """One that cannot tell of tokens while it draws."""

    def __init__(self, sampler):
        self._sampler = sampler

    def sample(self, request):
        return self._sampler.sample(replace(request, listener=None))

    def __getattr__(self, name):
        return getattr(self._sampler, name)


def test_a_sampler_that_tells_nothing_is_streamed_at_the_end(client, folders, tmp_path):
    service = open_service(folders, tmp_path)
    service._base_models._samplers[MODEL] = SilentSampler(service._base_models.sampler(MODEL))
    try:
        with serving(service) as address:
            silent = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
            told = chunks(silent, logprobs=True)
            assert contents(told) == contents(chunks(client, logprobs=True))
            assert len(told) == 2
    finally:
        service.close()
