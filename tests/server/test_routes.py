"""What goes over HTTP around the service: statuses, bodies, long polls and keys. The service is a stand-in."""

import asyncio
import gzip
import re
from concurrent.futures import Future

import httpx
import numpy as np
import pytest
import zstandard
from tinker.proto import tinker_public_pb2 as vendor

from weaver.compat.tinker.routes.bodies import decompress
from weaver.domain import ForwardBackwardResult, LoadState, OptimStepResult
from weaver.errors import (
    AlreadyExists,
    CheckpointDamaged,
    Forgotten,
    InvalidInput,
    LossFailed,
    SequenceRefused,
    Stopped,
    UnknownName,
)
from weaver.server.app import create_app
from weaver.service.records import SampleTicket, SupportedModel, Ticket

PROTOBUF = {"Content-Type": "application/x-protobuf"}


class StandIn:
    """Keeps what it is called with; answers with `error` once that is set."""

    def __init__(self):
        self.calls = []
        self.results = {}
        self.error = None
        self.reason = None

    def waits_for(self, request_id):
        return self.reason

    def supported_models(self):
        return (SupportedModel("demo", 512),)

    def future(self, request_id):
        if request_id not in self.results:
            raise Forgotten(f"no result {request_id} here")
        return self.results[request_id]

    def sample(self, *args, **kwargs):
        self._called("sample", args, kwargs)
        return SampleTicket("r", ("a", "b"))

    def refuse(self, model_id, seq_id, error):
        self.calls.append(("refuse", (model_id, seq_id), {}))
        raise error

    def _called(self, name, args, kwargs):
        self.calls.append((name, args, kwargs))
        if self.error:
            raise self.error

    def authenticators(self):
        return ()

    def __getattr__(self, name):
        def method(*args, **kwargs):
            self._called(name, args, kwargs)
            return Ticket("r", "m")

        return method


@pytest.fixture
def service():
    return StandIn()


@pytest.fixture
def app(service):
    return create_app(service, poll_seconds=0.0)


def asked(app, method, path, **kwargs):
    """One request, answered in this process."""

    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://weaver/api/v1") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(send())


def posted(app, path, **kwargs):
    return asked(app, "POST", path, **kwargs)


def forward_backward_body():
    message = vendor.ForwardBackwardRequest(model_id="m", seq_id=3, loss_fn="cross_entropy")
    message.data.add().model_input.add().encoded_text.tokens = np.arange(4, dtype="<i4").tobytes()
    return message


def test_a_pass_is_read_with_and_without_compression(app, service):
    body = forward_backward_body().SerializeToString()
    answer = posted(app, "/forward_backward", content=body, headers=PROTOBUF)
    compressed = zstandard.ZstdCompressor().compress(body)
    posted(app, "/forward_backward", content=compressed, headers=PROTOBUF | {"Content-Encoding": "zstd"})
    assert answer.json() == {"request_id": "r", "model_id": "m"}
    for name, (model_id, seq_id, operation), _ in service.calls:
        assert (name, model_id, seq_id) == ("submit", "m", 3)
        assert operation.data[0].tokens_T.tolist() == [0, 1, 2, 3]
    assert len(service.calls) == 2


def test_a_refused_pass_gives_up_its_number(app, service):
    message = forward_backward_body()
    message.data[0].model_input.add().image.format = "png"
    answer = posted(app, "/forward_backward", content=message.SerializeToString(), headers=PROTOBUF)
    assert answer.status_code == 400
    assert answer.json() == {"detail": "data[0].model_input[1] is of type image; this server reads encoded_text only"}
    assert answer.headers["content-length"] == str(len(answer.content))
    assert service.calls == [("refuse", ("m", 3), {})]


@pytest.mark.parametrize("path", ["/optim_step", "/save_weights", "/save_weights_for_sampler", "/load_weights"])
def test_a_refused_operation_gives_up_its_number(app, service, path):
    answer = posted(app, path, json={"model_id": "m", "seq_id": 4, "nonsense": 1})
    assert answer.status_code == 400
    assert "nonsense is not a field this server reads here" in answer.json()["detail"]
    assert service.calls == [("refuse", ("m", 4), {})]


@pytest.mark.parametrize("seq_id", [True, -1, 2**63, "4", None])
def test_a_refused_operation_without_a_number_gives_up_none(app, service, seq_id):
    assert posted(app, "/optim_step", json={"model_id": "m", "seq_id": seq_id}).status_code == 400
    assert service.calls == []


def test_weights_are_loaded_into_a_model_that_exists_or_a_new_one(app, service):
    posted(app, "/load_weights", json={"model_id": "m", "seq_id": 2, "path": "p", "optimizer": False})
    new = {"session_id": "s", "model_seq_id": 0, "path": "p", "optimizer": True, "optimizer_config": {"type": "adamw"}}
    posted(app, "/load_weights", json=new)
    assert service.calls == [
        ("submit", ("m", 2, LoadState("p", False)), {}),
        (
            "create_model_from_state",
            ("s", 0, "p"),
            {"base_model": None, "optimizer": True, "optimizer_kind": "adamw", "user_metadata": {}},
        ),
    ]


def test_a_sample_is_acknowledged_with_an_id_per_sequence(app, service):
    body = {
        "sampling_session_id": "s:sample:0",
        "seq_id": 0,
        "prompt": {"chunks": [{"tokens": [1, 2]}]},
        "sampling_params": {"stop": ["a"]},
        "num_samples": 2,
    }
    assert posted(app, "/asample", json=body).json() == {"request_id": "r", "sample_sequence_ids": ["a", "b"]}
    _, args, kwargs = service.calls[0]
    assert args == ("s:sample:0", 0)
    assert kwargs["prompt"].tolist() == [1, 2]
    assert (kwargs["max_tokens"], kwargs["stop_token_ids"], kwargs["stop_strings"]) == (None, None, ("a",))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[1]", "the body must be a JSON object: it is a list"),
        (b"", "the body must be a JSON object: EOF while parsing a value"),
        (b'{"a": "\\ud800"}', "the body must be a JSON object: .*hex escape"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(app, body, sentence):
    answer = posted(app, "/optim_step", content=body)
    assert answer.status_code == 400
    assert re.match(sentence, answer.json()["detail"])


def test_a_pass_in_another_format_or_encoding_is_refused_by_name(app):
    answer = posted(app, "/forward_backward", content=b"", headers={"Content-Type": "text/csv"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Content-Type is 'text/csv'; this server reads forward_backward as")
    answer = posted(
        app, "/forward_backward", content=gzip.compress(b""), headers=PROTOBUF | {"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 400
    assert answer.json()["detail"] == "Content-Encoding is 'gzip'; this server reads zstd or none"


def test_a_frame_that_grows_beyond_the_limit_is_refused():
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    assert len(bomb) < 1000
    with pytest.raises(InvalidInput, match="longer than 1000000 bytes uncompressed"):
        decompress(bomb, 1_000_000)
    assert decompress(bomb, 10_000_000) == bytes(10_000_000)


def test_a_frame_that_does_not_tell_its_size_is_bounded_too():
    stream = zstandard.ZstdCompressor().compressobj()
    bomb = stream.compress(bytes(1_000_000)) + stream.flush()
    with pytest.raises(InvalidInput, match="no zstd frame of at most 1000 bytes"):
        decompress(bomb, 1000)
    assert decompress(bomb, 1_000_000) == bytes(1_000_000)


@pytest.mark.parametrize("spoil", [lambda frame: frame[:-3], lambda frame: frame + b"x", lambda frame: b"junk"])
def test_a_damaged_frame_is_refused(spoil):
    with pytest.raises(InvalidInput, match="no zstd frame"):
        decompress(spoil(zstandard.ZstdCompressor().compress(bytes(1000))), 10_000)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("field x"), 400),
        (SequenceRefused("taken"), 400),
        (AlreadyExists("taken"), 400),
        (UnknownName("no such model"), 404),
        (Forgotten("ended"), 410),
        (CheckpointDamaged("bad"), 500),
        (Stopped("stopping"), 503),
        (KeyError("a mistake of ours"), 500),
    ],
)
def test_each_error_has_its_status_and_its_sentence(app, service, error, status):
    service.error = error
    answer = posted(app, "/session_heartbeat", json={"session_id": "s"})
    assert answer.status_code == status
    assert answer.json() == {"detail": str(error)}
    assert int(answer.headers["content-length"]) > 0


def test_a_poll_of_a_request_that_runs_asks_to_come_again(app, service):
    service.results["r"] = running = Future()
    answer = posted(app, "/retrieve_future", json={"request_id": "r", "allow_metadata_only": True})
    assert answer.status_code == 408
    assert answer.json() == {"detail": "r runs, or will in its turn", "queue_state": "active"}
    assert not running.cancelled()


def test_a_poll_of_a_request_that_waits_says_why(app, service):
    service.results["r"], service.reason = Future(), "the cache is full"
    answer = posted(app, "/retrieve_future", json={"request_id": "r", "allow_metadata_only": True})
    assert answer.status_code == 408
    assert answer.json()["queue_state"] == "paused_capacity"
    assert answer.json()["queue_state_reason"] == "the cache is full"


def test_a_poll_waits_for_the_result(service):
    app = create_app(service, poll_seconds=60.0)
    service.results["r"] = future = Future()

    async def poll_and_settle():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weaver/api/v1") as client:
            poll = asyncio.create_task(client.post("/retrieve_future", json={"request_id": "r"}))
            asyncio.get_running_loop().call_soon(future.set_result, OptimStepResult({"grad_norm": 2.0}))
            return await poll

    answer = asyncio.run(poll_and_settle())
    assert (answer.status_code, answer.json()) == (200, {"metrics": {"grad_norm": 2.0}})


def test_a_stopping_server_ends_polls_and_asks_to_come_again(service):
    app = create_app(service, poll_seconds=60.0)
    service.results["r"] = Future()
    app.state.context.stopping.set()
    assert posted(app, "/retrieve_future", json={"request_id": "r"}).status_code == 503


def test_a_pass_is_answered_in_protobuf(app, service):
    service.results["r"] = future = Future()
    future.set_result(ForwardBackwardResult((np.zeros(2, np.float32),), {"loss:sum": 1.0}))
    answer = posted(app, "/retrieve_future", json={"request_id": "r"})
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert vendor.ForwardBackwardOutput.FromString(answer.content).metrics == {"loss:sum": 1.0}


@pytest.mark.parametrize(
    ("error", "category"),
    [(InvalidInput("bad"), "user"), (LossFailed("bad"), "server"), (ZeroDivisionError("bad"), "server")],
)
def test_a_failure_while_running_is_an_answer_with_a_category(app, service, error, category):
    service.results["r"] = future = Future()
    future.set_exception(error)
    answer = posted(app, "/retrieve_future", json={"request_id": "r"})
    assert (answer.status_code, answer.json()) == (200, {"error": "bad", "category": category})


def test_an_operation_that_a_stop_interrupted_has_not_failed(app, service):
    service.results["r"] = future = Future()
    future.set_exception(Stopped("stopping"))
    assert posted(app, "/retrieve_future", json={"request_id": "r"}).status_code == 503


def test_a_result_that_is_gone_or_cancelled_is_410(app, service):
    service.results["r"] = future = Future()
    future.cancel()
    assert posted(app, "/retrieve_future", json={"request_id": "r"}).status_code == 410
    assert posted(app, "/retrieve_future", json={"request_id": "other"}).status_code == 410


def test_only_the_servers_keys_open_it(service):
    app = create_app(service, ["tml-a", "tml-b"])
    path = "/get_server_capabilities"
    for key in ("tml-a", "tml-b"):
        assert asked(app, "GET", path, headers={"X-API-Key": key}).status_code == 200
    for headers in ({"X-API-Key": "tml-c"}, {"X-API-Key": "tml-ä".encode()}, {}):
        answer = asked(app, "GET", path, headers=headers)
        assert (answer.status_code, answer.json()["detail"][:9]) == (401, "the X-API")
    assert asked(app, "GET", "/healthz").json() == {"status": "ok"}


def test_a_server_without_keys_takes_any(app):
    answer = asked(app, "GET", "/get_server_capabilities", headers={"X-API-Key": "tml-anything"})
    assert answer.json()["supported_models"] == [
        {"model_name": "demo", "max_context_length": 512, "trainable": True, "sampleable": True}
    ]


def test_telemetry_is_accepted_whatever_it_holds(app, service):
    assert posted(app, "/telemetry", content=b"not even json").json() == {"status": "accepted"}
    assert service.calls == []


def test_ids_with_colons_find_their_sampler_and_session(app, service):
    service.error = UnknownName("seen")
    assert asked(app, "GET", "/samplers/s:sample:0").status_code == 404
    finish = {"reason": {"type": "errored"}, "detail": None}
    service.error = None
    assert posted(app, "/sessions/a:b/finish", json=finish).status_code == 200
    assert service.calls == [("sampler_info", ("s:sample:0",), {}), ("finish_session", ("a:b", "errored", None), {})]


def test_a_refused_poll_for_many_samples_drops_no_result(app, service):
    service.error = Forgotten("no such sampler")
    target = {"type": "sampling_session", "sampling_session_id": "s"}
    answer = posted(app, "/retrieve_futures", json={"target": target, "retrieved_request_ids": ["r"]})
    assert answer.status_code == 410
    assert [name for name, _, _ in service.calls] == ["settled_samples"]
