"""What goes over the wire: the requests that nex-weaver 1.19.2 sends for the same calls, and when they are repeated."""

import json
import re
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import weaver
from weaver.client.transports import packs, wire

types = weaver.types
MODEL_ID, CHECKPOINT_ID = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
LOGPROBS = {"data": [-1.0, -2.0, -3.0], "dtype": "float32", "shape": [3]}
PASS = {"result": {"loss_fn_outputs": [{"logprobs": LOGPROBS}], "metrics": {"loss": 1.0}}}
SAVED = {"id": CHECKPOINT_ID, "path": f"weaver://{MODEL_ID}/checkpoints/a", "type": "weight_and_optimizer"}
SEQUENCE = {"tokens": [3], "text": "w3", "logprobs": [-1.0], "stop_reason": "stop"}
ANSWERS = {
    "POST /sessions": {"id": "s"},
    "GET /models/M/checkpoints": {"items": [SAVED]},
    "POST /sessions/s/models": {"id": MODEL_ID, "tokenizer_path": "t"},
    "POST /models/M/forward-backward-passes": PASS,
    "POST /models/M/forward-passes": PASS,
    "POST /models/M/optimizer-steps": {"metrics": {"lr": 1.0}},
    "POST /models/M/checkpoints": SAVED,
    "POST /models/M/load": {"status": "completed"},
    "POST /models/M/export-sampler": {"model_path": f"weaver://{MODEL_ID}/checkpoints/s1"},
    "POST /sessions/s/sampling-sessions": {"id": "ss", "tokenizer_path": "t"},
    "POST /sampling-sessions/ss/samples": {"result": {"sequences": [SEQUENCE], "weight_version": "v"}},
    "POST /sampling-sessions/ss/logprobs": {"result": {"prompt_logprobs": [None, -1.0, -2.0]}},
    f"POST /checkpoints/{CHECKPOINT_ID}/export": {"id": CHECKPOINT_ID, "kind": "hf_adapter", "status": "completed"},
}
OPERATIONS = ("passes", "steps", "/checkpoints", "load", "export-sampler", "samples", "logprobs")


def answer(method, path, headers, body):
    """As a server that does everything at once."""
    url = urlsplit(path)
    inner = url.path.removeprefix("/api/v1").replace(f"models/{MODEL_ID}", "models/M")
    known = ANSWERS.get(f"{method} {inner}", {})
    if method == "POST" and inner.endswith(OPERATIONS) and not inner.endswith("/export"):
        known = {"id": "op", "status": "done", "response": known}
    return 200, {"Content-Type": "application/json"}, json.dumps(known).encode()


@pytest.fixture
def fast(monkeypatch):
    """Repeats come soon."""
    monkeypatch.setattr(wire, "_FIRST_DELAY", 0.001)
    monkeypatch.setenv("WEAVER_OPERATION_POLL_INTERVAL", "0.001")


def sent(server):
    """What a server was asked, without heartbeats, which come when they come."""
    asked = []
    for method, path, _, body in list(server.asked):
        if not path.endswith("/heartbeat"):
            asked.append((f"{method} {urlsplit(path).path}".replace(MODEL_ID, "M"), json.loads(body) if body else None))
    return asked


def written_data(**more):
    inputs = {
        "target_tokens": {"data": [2, 3, 4], "dtype": "int64"},
        "weights": {"data": [0, 1, 1], "dtype": "int64"},
        **more,
    }
    chunks = [{"type": "encoded_text", "tokens": [1, 2, 3]}]
    return [{"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs}]


def written_pass(number, kind, loss, **more):
    asked = {"loss_fn": loss, "data": written_data(**more)}
    return {"payload": {"model_id": MODEL_ID, "seq_id": number, "tensor_transport": "default", f"{kind}_input": asked}}


def test_the_requests_are_those_that_were_captured_from_the_unmodified_client(recorder):
    """The calls and bodies of the appendix of the protocol's reference."""
    server = recorder(answer)
    client = weaver.ServiceClient(base_url=server.url)
    client.connect()
    trainer = client.create_model(base_model="tiny/model", lora_config=types.LoraConfig(rank=8))
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2, 3]),
        loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [0, 1, 1]},
    )
    assert trainer.forward_backward([datum], "cross_entropy") == PASS
    assert trainer.optim_step(types.AdamParams(learning_rate=0.001)) == {"metrics": {"lr": 1.0}}
    saved = trainer.save_state(name="a", checkpoint_type="weight_and_optimizer")
    trainer.load_state_with_optimizer(saved)
    trainer.forward_backward_custom([datum], lambda data, logprobs: (-logprobs[0].sum(), {}))
    sampler = trainer.save_weights_and_get_sampling_client(name="s1")
    params = types.SamplingParams(max_tokens=3, stop=["\n", 7])
    sampled = sampler.sample(prompt=types.ModelInput.from_ints([5, 6]), sampling_params=params)
    assert (sampled["sequences"], sampled["weight_version"]) == ([SEQUENCE], "v")
    scoring = types.LogprobsParams(loss_fn_config={"temperature": 0.7})
    prompt = types.ModelInput.from_ints([5, 6, 7])
    assert sampler.compute_logprobs(prompt=prompt, logprobs_params=scoring) == [None, -1.0, -2.0]
    assert trainer.export_weights(checkpoint=saved).kind == "hf_adapter"
    client.create_sampling_client(base_model="tiny/model")
    trainer.log_metrics({"reward": 1.0}, step=1)
    client.close()
    asked = sent(server)
    metrics = asked[-2][1]["metrics"][0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", metrics.pop("occurred_at"))
    lora = {"rank": 8, "train_unembed": True, "train_mlp": True, "train_attn": True}
    adam = {
        "learning_rate": 0.001, "beta1": 0.9, "beta2": 0.95, "eps": 1e-08, "weight_decay": 0.01, "grad_clip_norm": 1.0
    }  # fmt: skip
    step = {"model_id": MODEL_ID, "seq_id": 2, "adam_params": adam}
    scored = {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]}
    minus = {"surrogate_weights": {"data": [-1.0, -1.0, -1.0], "dtype": "float32"}}
    sampling = {
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 3, "stop": ["\n"], "stop_token_ids": [7]
    }  # fmt: skip
    assert asked == [
        ("POST /api/v1/sessions", {"tags": ["weaver-sdk"], "user_metadata": {}, "sdk_version": weaver.__version__}),
        ("POST /api/v1/sessions/s/models", {"model_seq_id": 1, "base_model": "tiny/model", "lora_config": lora}),
        ("POST /api/v1/models/M/forward-backward-passes", written_pass(1, "forward_backward", "cross_entropy")),
        ("POST /api/v1/models/M/optimizer-steps", {"payload": step}),
        ("POST /api/v1/models/M/checkpoints", {"type": "weight_and_optimizer", "name": "a"}),
        ("POST /api/v1/models/M/load", {"path": SAVED["path"], "include_optimizer": True}),
        ("POST /api/v1/models/M/forward-passes", written_pass(3, "forward", "forward_logprob")),
        ("POST /api/v1/models/M/forward-backward-passes", written_pass(4, "forward_backward", "surrogate", **minus)),
        ("POST /api/v1/models/M/export-sampler", {"seq_id": 5, "path": "s1", "ttl_seconds": 3600}),
        (
            "POST /api/v1/sessions/s/sampling-sessions",
            {
                "sampling_session_seq_id": 1,
                "base_model": "tiny/model",
                "model_path": f"weaver://{MODEL_ID}/checkpoints/s1",
                "model_id": MODEL_ID,
            },
        ),
        (
            "POST /api/v1/sampling-sessions/ss/samples",
            {
                "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
                "sampling_params": sampling,
                "num_samples": 1,
                "prompt_logprobs": False,
                "topk_prompt_logprobs": 0,
            },
        ),
        (
            "POST /api/v1/sampling-sessions/ss/logprobs",
            {"prompt": scored, "loss_fn_config": {"temperature": 0.7}},
        ),
        (
            f"POST /api/v1/checkpoints/{CHECKPOINT_ID}/export",
            {"format": "huggingface", "merge_adapter": False, "ttl_seconds": 604800, "force": False},
        ),
        (
            "POST /api/v1/sessions/s/sampling-sessions",
            {"sampling_session_seq_id": 2, "base_model": "tiny/model", "model_path": None},
        ),
        (
            "POST /api/v1/sessions/s/metrics",
            {"metrics": [{"model_id": MODEL_ID, "name": "reward", "value": 1.0, "step": 1, "labels": {}}]},
        ),
        ("POST /api/v1/models/M/terminate", None),
    ]  # fmt: skip


def test_a_key_goes_into_its_header_and_nowhere_else(recorder, monkeypatch):
    server = recorder(answer)
    monkeypatch.setenv("WEAVER_BASE_URL", server.url)
    monkeypatch.setenv("WEAVER_API_KEY", "sk-secret")
    with weaver.ServiceClient() as client:
        client.list_models(limit=3)
        assert "sk-secret" not in repr(client._settings)
    keys = {headers["X-WEAVER-API-KEY"] for _, _, headers, _ in server.asked}
    assert keys == {"sk-secret"}
    [path] = [path for _, path, _, _ in server.asked if "/models" in path]
    assert parse_qs(urlsplit(path).query) == {"limit": ["3"], "offset": ["0"]}


class Flaky:
    """Fails a number of times at a path, then answers as always."""

    def __init__(self, path, failure, times):
        self.path, self.failure, self.times, self.asked = path, failure, times, 0

    def __call__(self, method, path, headers, body):
        if urlsplit(path).path.endswith(self.path):
            self.asked += 1
            if self.asked <= self.times:
                return self.failure
        return answer(method, path, headers, body)


def refusal(status, retryable, code="busy"):
    body = {"error": code, "message": "later", "retryable": retryable, "request_id": "r1", "details": {"a": 1}}
    return status, {"Content-Type": "application/json", "Retry-After": "1"}, json.dumps(body).encode()


@pytest.mark.parametrize(
    ("path", "failure", "times", "asked"),
    [
        ("/sessions", None, 4, 5),
        ("/sessions", refusal(503, True), 4, 5),
        ("/models/M/checkpoints", refusal(429, True), 2, 3),
        ("/optimizer-steps", None, 2, 3),
    ],
    ids=["a lost connection", "a busy server", "a read that may be repeated", "a numbered operation"],
)
def test_what_may_be_repeated_is(recorder, fast, path, failure, times, asked):
    flaky = Flaky(path.replace("/M/", f"/{MODEL_ID}/"), failure, times)
    with weaver.ServiceClient(base_url=recorder(flaky).url) as client:
        trainer = client.create_model(base_model="tiny/model")
        trainer.list_checkpoints()
        trainer.optim_step(types.AdamParams())
    assert flaky.asked == asked


@pytest.mark.parametrize("path", ["/load", "/samples"])
def test_what_must_not_happen_twice_is_asked_for_once(recorder, fast, path):
    flaky = Flaky(path, None, 1)
    with weaver.ServiceClient(base_url=recorder(flaky).url) as client:
        trainer = client.create_model(base_model="tiny/model")
        sampler, one = client.create_sampling_client(base_model="tiny/model"), types.ModelInput.from_ints([1])
        call = {
            "/load": lambda: trainer.load_state("weaver://a/checkpoints/b"),
            "/samples": lambda: sampler.sample(prompt=one),
        }
        with pytest.raises(weaver.WeaverAPIError, match=r"^\[503\] transport_unavailable: POST ") as caught:
            call[path]()
    assert caught.value.retryable
    assert flaky.asked == 1


def test_a_refusal_tells_all_that_the_server_says(recorder):
    flaky = Flaky("/optimizer-steps", refusal(402, False, "quota_exceeded"), 1)
    with weaver.ServiceClient(base_url=recorder(flaky).url) as client:
        trainer = client.create_model(base_model="tiny/model")
        with pytest.raises(weaver.WeaverAPIError) as caught:
            trainer.optim_step(types.AdamParams())
    error = caught.value
    assert str(error) == "[402] quota_exceeded: later"
    assert (error.status_code, error.code, error.message, error.retryable) == (402, "quota_exceeded", "later", False)
    assert (error.request_id, error.retry_after, error.details) == ("r1", "1", {"a": 1})


def test_a_server_of_another_kind_is_quoted(recorder):
    flaky = Flaky("/optimizer-steps", (502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>"), 1)
    with weaver.ServiceClient(base_url=recorder(flaky).url) as client:
        trainer = client.create_model(base_model="tiny/model")
        with pytest.raises(weaver.WeaverAPIError, match=r"^\[502\] unknown_error: <h1>Bad Gateway</h1>$"):
            trainer.optim_step(types.AdamParams())


def polled(states):
    """A server that accepts a step, and then tells these states."""
    left = list(states)

    def told(method, path, headers, body):
        if path.endswith("/optimizer-steps"):
            return 202, {}, json.dumps({"id": "op1", "status": "pending"}).encode()
        if path.endswith("/operations/op1"):
            state = left.pop(0)
            return state if isinstance(state, tuple) else (200, {}, json.dumps({"id": "op1", **state}).encode())
        return answer(method, path, headers, body)

    return told


def test_a_server_that_does_not_wait_is_polled_until_it_is_done(recorder, fast):
    states = [
        {"status": "pending"},
        {"status": "running"},
        refusal(500, False),
        {"status": "DONE", "response": {"m": 1}},
    ]
    with weaver.ServiceClient(base_url=recorder(polled(states)).url) as client:
        handle = client.create_model(base_model="tiny/model").optim_step(types.AdamParams(), wait=False)
        assert (handle.operation_id, handle.status, handle.done()) == ("op1", "pending", False)
        assert handle.result() == {"m": 1}
        assert handle.status == "done"


def test_polls_fail_for_good_at_last(recorder, fast, monkeypatch):
    monkeypatch.setenv("WEAVER_OPERATION_POLL_TRANSIENT_RETRIES", "1")
    with weaver.ServiceClient(base_url=recorder(polled([refusal(500, False)] * 3)).url) as client:
        handle = client.create_model(base_model="tiny/model").optim_step(types.AdamParams(), wait=False)
        with pytest.raises(weaver.WeaverAPIError, match=r"\[500\]"):
            handle.result()
        client._connection.ended(handle._operation)


def test_an_operation_that_is_not_there_is_not_waited_for(recorder, fast):
    with weaver.ServiceClient(base_url=recorder(polled([refusal(404, False, "not_found")])).url) as client:
        handle = client.create_model(base_model="tiny/model").optim_step(types.AdamParams(), wait=False)
        with pytest.raises(weaver.WeaverAPIError, match=r"\[404\] not_found"):
            handle.result()
        client._connection.ended(handle._operation)


def test_why_an_operation_waits_can_be_read_and_is_logged(recorder, fast, caplog):
    info = {"code": "waiting_for_resources", "message": "no machine is free", "wait_seconds": 7}
    states = [{"status": "pending", "pending_info": info}, {"status": "pending", "pending_info": info}]
    with weaver.ServiceClient(base_url=recorder(polled([*states, {"status": "done", "response": {}}])).url) as client:
        handle = client.create_model(base_model="tiny/model").optim_step(types.AdamParams(), wait=False)
        handle.refresh()
        assert handle.pending_info == info
        handle.result()
        assert handle.pending_info is None
    assert "has been pending for 7 s [waiting_for_resources]: no machine is free" in caplog.text


def test_arrays_travel_beside_the_request_and_come_back_the_same():
    """What is packed is what is unpacked, byte for byte, in both codecs."""
    arrays = [np.array([5, 9, 3]), np.array([[0.5, -1.0], [2.0, 3.0]], np.float32), np.array(1.5)]
    payload = {"forward_input": {"data": [{"x": {"data": arrays[1], "dtype": "float32"}}, arrays[0], arrays[2]]}}
    for codec in ("raw", "zstd"):
        made = packs.packed({"payload": payload}, codec)
        boundary = made.content_type.partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in made.content.split(b"--" + boundary)]
        manifest, pack = json.loads(parts[1]), parts[2]
        assert manifest["tensor_pack"]["codec"] == codec
        asked = manifest["request"]["payload"]
        assert (asked["tensor_transport"], asked["tensor_compression"]) == ("http-binary", codec)
        response = {"result": asked["forward_input"], "tensor_pack": manifest["tensor_pack"]}
        first, second, third = packs.unpacked(response, pack)["result"]["data"]
        assert first["x"] == {"data": [[0.5, -1.0], [2.0, 3.0]], "dtype": "float32", "shape": [2, 2]}
        assert second == {"data": [5, 9, 3], "dtype": "int64", "shape": [3]}
        assert third == {"data": 1.5, "dtype": "float64", "shape": []}
        with pytest.raises(ValueError, match="differs from its size or its sha256"):
            packs.unpacked(response, pack[:-1] + b"!")


def test_a_result_may_travel_apart_from_its_operation(recorder, fast):
    """Servers that are not weaver's may send it so."""
    pack = np.array([-1.0, -2.0], "<f4").tobytes()
    tensor = {"format": "raw-tensor", "codec": "raw", "dtype": "float32", "shape": [2], "offset": 0, "size_bytes": 8}
    about = {"size_bytes": 8, "sha256": sha256(pack).hexdigest(), "codec": "raw", "decoded_size_bytes": 8}
    response = {"result": {"loss_fn_outputs": [{"logprobs": {"$tensor": tensor}}]}, "tensor_pack": about}
    tell = polled([{"status": "done", "response": response}] * 2)

    def told(method, path, headers, body):
        return (200, {}, pack) if path.endswith("/operations/op1/tensor-pack") else tell(method, path, headers, body)

    with weaver.ServiceClient(base_url=recorder(told).url) as client:
        handle = client.create_model(base_model="tiny/model").optim_step(types.AdamParams(), wait=False)
        logprobs = {"data": [-1.0, -2.0], "dtype": "float32", "shape": [2]}
        assert handle.result() == {"result": {"loss_fn_outputs": [{"logprobs": logprobs}]}}


def test_a_save_that_tells_nothing_is_no_checkpoint(recorder):
    flaky = Flaky("/checkpoints", (200, {}, b'{"id": "op", "status": "done", "response": {}}'), 1)
    with weaver.ServiceClient(base_url=recorder(flaky).url) as client:
        trainer = client.create_model(base_model="tiny/model")
        with pytest.raises(RuntimeError, match="returned no checkpoint metadata"):
            trainer.save_state()


def test_a_number_that_json_has_not_is_null():
    assert (
        packs.to_json({"a": [1.0, float("nan")], "b": np.array([np.inf, 2.0])})
        == b'{"a": [1.0, null], "b": [null, 2.0]}'
    )
