"""What is refused: in OpenAI's shape, by the field's name, and before anything has happened."""

import json

import httpx
import openai
import pytest

from tests.fuzz.state import Rows
from tests.server.conftest import echo_config
from tests.serving import serving
from weaver.service import Service

from .conftest import CONTEXT, MODEL, open_service

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
TEXT = {"model": MODEL, "prompt": "hi", "max_tokens": 2}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}

REFUSED_CHATS = {
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": -1},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "logit_bias": {"logit_bias": {"5": 10}},
    "min_p": {"min_p": 0.1},
    "min_tokens": {"min_tokens": -1},
    "response_format.type": {"response_format": SCHEMA},
    "modalities": {"modalities": ["text", "audio"]},
    "reasoning_effort": {"reasoning_effort": "high"},
    "verbosity": {"verbosity": "low"},
    "audio": {"audio": {"voice": "x"}},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "web_search_options": {"web_search_options": {}},
    "functions": {"functions": [{"name": "f"}]},
    "function_call": {"function_call": "auto"},
    "store": {"store": True},
    "service_tier": {"service_tier": "flex"},
    "beam_width": {"beam_width": 4},
    "temperature": {"temperature": -0.1},
    "top_p": {"top_p": 0},
    "top_k": {"top_k": -2},
    "n": {"n": 0},
    "seed": {"seed": -1},
    "max_tokens": {"max_tokens": 0},
    "max_completion_tokens": {"max_completion_tokens": "3"},
    "stop": {"stop": ["a", ""]},
    "stop_token_ids[0]": {"stop_token_ids": [-1]},
    "top_logprobs": {"logprobs": True, "top_logprobs": 21},
    "logprobs": {"logprobs": 1},
    "stream_options.include_obfuscation": {"stream_options": {"include_obfuscation": True}},
    "messages": {"messages": []},
    "messages[0].role": {"messages": [{"role": "function", "content": "x"}]},
    "messages[0].weight": {"messages": [{"role": "user", "content": "x", "weight": 1}]},
    "messages[0].audio": {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "x"}}]},
    "messages[1].tool_calls[0].function.arguments": {
        "messages": [*MESSAGES, {"role": "assistant", "tool_calls": [CALLED]}]
    },
}


@pytest.mark.parametrize("field", REFUSED_CHATS)
def test_a_field_that_cannot_be_honoured_is_refused_by_its_name(field, url):
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | REFUSED_CHATS[field], timeout=120)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", field)
    assert field in error["message"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"messages": [IMAGE]}, "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs is about logprobs"),
        ({"max_completion_tokens": 3}, "max_tokens and max_completion_tokens are the same thing"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]}, "tool_call_id belongs to"),
        ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "reasoning_content belong to"),
        ({"stop_token_ids": [9999]}, "token id 9999"),
        ({"min_tokens": 3}, "min_tokens is 3, more than max_tokens, 2; lower it"),
    ],
)
def test_what_contradicts_itself_is_refused(more, sentence, url):
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | more, timeout=120)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("echo", {"echo": True}),
        ("suffix", {"suffix": "x"}),
        ("best_of", {"best_of": 2}),
        ("logprobs", {"logprobs": 21}),
        ("min_tokens", {"min_tokens": 3}),
        ("prompt", {"prompt": []}),
        ("messages", {"messages": MESSAGES}),
    ],
)
def test_completions_have_refusals_of_their_own(field, more, url):
    answer = httpx.post(f"{url}/v1/completions", json=TEXT | more, timeout=120)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_token_ids_outside_the_vocabulary_are_refused(url):
    answer = httpx.post(f"{url}/v1/completions", json=TEXT | {"prompt": [5, 99999]}, timeout=120)
    assert answer.status_code == 400
    assert "prompt[1] is 99999" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"max_tokens": None, "messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages"),
    ],
)
def test_what_does_not_fit_the_context_is_refused_not_cut(more, field, client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**(CHAT | more))
    assert refused.value.param == field
    assert f"exceed the context of {MODEL!r}, {CONTEXT}" in refused.value.body["message"]


def test_a_refusal_leaves_nothing_behind_not_even_a_session(folders, tmp_path):
    service = open_service(folders, tmp_path)
    rows = Rows(service)
    try:
        with serving(service) as address:
            before = rows.read()
            snapshot = {"model": "tinker://nobody:train:0/sampler_weights/x"}
            for more in (REFUSED_CHATS["n"], {"max_tokens": CONTEXT}, {"stop_token_ids": [9999]}, snapshot):
                assert httpx.post(f"{address}/oai/api/v1/chat/completions", json=CHAT | more, timeout=120).is_error
            assert rows.read() == before
            assert httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=120).is_success
            assert rows.read() != before
    finally:
        rows.close()
        service.close()


def test_models_that_are_not_there_are_told_as_such(client):
    for model in ("gpt-4o", "tinker://nobody:train:0/sampler_weights/x", "nobody:train:0", ""):
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(**(CHAT | {"model": model}))
        assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_path_that_is_none_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="is not of the form tinker://"):
        client.chat.completions.create(**(CHAT | {"model": "tinker://x"}))


@pytest.mark.parametrize("prefix", ["/v1", "/oai/api/v1"])
def test_paths_below_the_endpoints_are_answered_in_their_shape(prefix, url):
    for method, path, status in (
        ("GET", "/nothing", 404), ("POST", "/responses", 404), ("GET", "", 404), ("GET", "/chat/completions", 405),
    ):  # fmt: skip
        answer = httpx.request(method, url + prefix + path, timeout=120)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
        assert f"{method} {prefix}{path}" in answer.json()["error"]["message"]


def test_other_paths_keep_their_own_shape(url):
    assert httpx.get(f"{url}/v12", timeout=120).json() == {"detail": "Not Found"}
    assert "detail" in httpx.post(f"{url}/api/v1/asample", json={}, timeout=120).json()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_object_is_a_bad_request(body, url):
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = httpx.post(url + path, content=body, timeout=120)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_a_key_is_needed_where_the_server_has_some(service):
    def ask(address, **options):
        return openai.OpenAI(base_url=f"{address}/v1", max_retries=0, **options).models.list()

    with serving(service, ("tml-one", "tml-two")) as address:
        with pytest.raises(openai.AuthenticationError) as refused:
            ask(address, api_key="tml-three")
        assert (refused.value.code, refused.value.status_code) == ("invalid_api_key", 401)
        assert ask(address, api_key="tml-two").data
        for header in ("X-API-Key", "X-WEAVER-API-KEY"):
            assert ask(address, api_key="no", default_headers={header: "tml-one"}).data
        nobody = httpx.post(f"{address}/oai/api/v1/chat/completions", content=b"{", timeout=120)
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_model_without_a_tokenizer_is_listed_and_refused(tmp_path):
    service = Service(echo_config(tmp_path))
    try:
        with serving(service) as address:
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
            [model] = client.models.list().data
            with pytest.raises(openai.BadRequestError, match="has no tokenizer"):
                client.completions.create(model=model.id, prompt=[1, 2], max_tokens=2)
    finally:
        service.close()


class BrokenService(Service):
    """Something nobody foresaw."""

    def supported_models(self):
        raise RuntimeError("the disk is on fire")


def test_what_nobody_foresaw_is_a_servers_error_in_the_same_shape(tmp_path):
    service = BrokenService(echo_config(tmp_path))
    try:
        with serving(service) as address:
            answer = httpx.post(f"{address}/v1/chat/completions", content=json.dumps(CHAT), timeout=120)
            assert answer.status_code == 500
            assert answer.json()["error"] == {
                "message": "the disk is on fire", "type": "server_error", "param": None, "code": None,
            }  # fmt: skip
    finally:
        service.close()
