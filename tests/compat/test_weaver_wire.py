"""The wire of Weaver's SDK as a table of functions over a service, and as routes; no torch, and no SDK."""

import asyncio
import hashlib
import json
import uuid

import httpx
import numpy as np
import pytest
import zstandard
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from weaver.backend import ModelSource
from weaver.compat.tinker.routes import router as tinker_router
from weaver.compat.weaver_wire import WireContext, dispatch, ids
from weaver.compat.weaver_wire.endpoints import ENDPOINTS
from weaver.compat.weaver_wire.errors import answer_error
from weaver.compat.weaver_wire.openapi import READS
from weaver.compat.weaver_wire.routes import SHARED
from weaver.compat.weaver_wire.tensor_pack import body_of_pack
from weaver.config import Config
from weaver.errors import Forgotten, InvalidInput, LossFailed, NotAuthenticated, Stopped
from weaver.server.app import create_app
from weaver.service import Service

MODEL, KEY = "some/echo", "tml-key"
ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01, "grad_clip_norm": 1.0}


@pytest.fixture
def service(tmp_path):
    source = ModelSource(MODEL, "echo:vocab=100,context=64")
    made = Service(Config(models=(source,), data_dir=tmp_path, backend="echo", sampler="echo"))
    yield made
    made.close()


@pytest.fixture
def context(service):
    return WireContext(service)


def ask(context, method, path, body=None, query=None):
    return asyncio.run(dispatch(context, method, path, query, body))


def good(context, method, path, body=None, query=None):
    status, value = ask(context, method, path, body, query)
    assert status < 300, value
    return value


@pytest.fixture
def session_id(context):
    return good(context, "POST", "/sessions", {"tags": ["t"]})["id"]


@pytest.fixture
def model_id(context, session_id):
    body = {"model_seq_id": 1, "base_model": MODEL, "lora_config": {"rank": 4}}
    return good(context, "POST", f"/sessions/{session_id}/models", body)["id"]


def a_pass(seq_id, tokens=(5, 6, 7), weights=(1.0, 1.0, 1.0), **datum):
    one = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": [*tokens[1:], 8], "dtype": "int64"},
            "weights": {"data": weights, "dtype": "float32"},
        },
        **datum,
    }
    return {"payload": {"seq_id": seq_id, "forward_backward_input": {"loss_fn": "cross_entropy", "data": [one]}}}


def step(seq_id, **adam):
    return {"payload": {"seq_id": seq_id, "adam_params": ADAM | adam}}


# Names


def test_ids_of_both_sides_are_computed_from_each_other():
    session = str(uuid.uuid4())
    for inner in (f"{session}:train:12", f"{session}:sample:0a1b2c3d4e5f"):
        assert ids.inner(ids.outer(inner)) == inner
        assert ids._OUTER.fullmatch(ids.outer(inner))
        assert set(ids.outer(inner)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert ids.inner("nobody") == ids.outer("nobody") == "nobody"


def test_both_faces_see_the_same_checkpoint(context, service, model_id):
    saved = good(context, "POST", f"/models/{model_id}/checkpoints", {"type": "weight_and_optimizer", "name": "a"})
    [info] = service.archive.checkpoints_of_run(ids.inner(model_id))
    assert info.path == f"tinker://{ids.inner(model_id)}/weights/a"
    assert saved["response"]["path"] == f"weaver://{model_id}/checkpoints/a"
    assert str(uuid.UUID(saved["response"]["id"])) == saved["response"]["id"]
    loaded = good(context, "POST", f"/models/{model_id}/load", {"path": info.path, "include_optimizer": True})
    assert loaded["status"] == "done"


# Operations


def test_short_operations_are_done_in_the_post_and_can_be_asked_for_again(context, model_id):
    status, first = ask(context, "POST", f"/models/{model_id}/forward-backward-passes", a_pass(1))
    assert (status, first["status"]) == (200, "done")
    [output] = first["response"]["result"]["loss_fn_outputs"]
    assert isinstance(output["logprobs"]["data"], np.ndarray)
    assert output["logprobs"]["shape"] == [3]
    again = good(context, "GET", f"/operations/{first['id']}")
    assert again["response"]["result"]["metrics"] == first["response"]["result"]["metrics"]


def test_one_that_is_not_waited_for_is_pending_and_settles_later(service, context, model_id):
    async def run():
        at_once = WireContext(service, hold_seconds=0, operations=context.operations, numbering=context.numbering)
        status, told = await dispatch(at_once, "POST", f"/models/{model_id}/optimizer-steps", None, step(1))
        assert (status in (200, 202), set(told) >= {"id", "status"}) == (True, True)
        assert await context.operations.settled(told["id"], None)
        return context.operations.told(told["id"])

    assert asyncio.run(run())["response"]["metrics"] is not None


def test_arrays_may_stand_for_lists_in_process(context, model_id):
    tokens = np.array([5, 6, 7])
    data = [
        {
            "model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "loss_fn_inputs": {"target_tokens": np.array([6, 7, 8]), "weights": np.array([0, 1, 1])},
        }
    ]
    body = {"payload": {"seq_id": 1, "forward_backward_input": {"loss_fn": "cross_entropy", "data": data}}}
    assert good(context, "POST", f"/models/{model_id}/forward-backward-passes", body)["status"] == "done"


def test_an_exact_repeat_is_one_operation_and_another_request_is_refused(context, service, model_id):
    path = f"/models/{model_id}/forward-backward-passes"
    first, again = (good(context, "POST", path, a_pass(1)) for _ in range(2))
    assert again["id"] == first["id"]
    status, refused = ask(context, "POST", path, a_pass(1, weights=(1.0, 2.0, 1.0)))
    assert (status, refused["error"]) == (409, "sequence_refused")
    assert refused["message"].startswith("seq_id 1 was used by a different request of this model: this ForwardBackward")
    assert good(context, "POST", f"/models/{model_id}/optimizer-steps", step(2))["status"] == "done"


def test_a_number_whose_request_was_refused_may_be_used_again(context, model_id):
    path = f"/models/{model_id}/optimizer-steps"
    status, refused = ask(context, "POST", path, step(1, beta1=2.0))
    assert (status, refused["error"]) == (400, "invalid_request")
    assert "adam_params.beta1 is 2.0" in refused["message"]
    assert good(context, "POST", path, step(1))["status"] == "done"


def test_requests_that_overtake_each_other_run_in_the_order_of_their_numbers(context, service, model_id):
    """The step is sent first, and waits for the pass of a lower number."""
    submitted = []

    class Noting:
        def __getattr__(self, name):
            return getattr(service, name)

        def submit(self, model, number, operation):
            submitted.append(type(operation).__name__)
            return service.submit(model, number, operation)

    noting = WireContext(Noting(), numbering=context.numbering)

    async def run():
        later = asyncio.ensure_future(dispatch(noting, "POST", f"/models/{model_id}/optimizer-steps", None, step(2)))
        while not context.numbering._lines:
            await asyncio.sleep(0)
        first = dispatch(noting, "POST", f"/models/{model_id}/forward-backward-passes", None, a_pass(1))
        return await asyncio.gather(first, later)

    assert [status for status, _ in asyncio.run(run())] == [200, 200]
    assert submitted == ["ForwardBackward", "OptimStep"]


def test_a_save_that_is_sent_again_is_one_and_a_later_one_is_refused(context, model_id):
    path, body = f"/models/{model_id}/checkpoints", {"type": "weight", "name": "once"}
    first, again = (good(context, "POST", path, body) for _ in range(2))
    assert again["id"] == first["id"]
    good(context, "POST", f"/models/{model_id}/optimizer-steps", step(1))
    status, refused = ask(context, "POST", path, body)
    assert (status, refused["error"]) == (409, "name_taken")


# Refusals


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable"),
    [
        (InvalidInput("x"), 400, "invalid_request", False),
        (Forgotten("x"), 410, "gone", False),
        (NotAuthenticated("x"), 401, "unauthorized", False),
        (Stopped("x"), 503, "shutting_down", True),
        (LossFailed("x"), 500, "operation_failed", False),
        (KeyError("x"), 500, "internal", False),
    ],
)
def test_errors_are_told_in_one_shape(error, status, code, retryable):
    found, told = answer_error(error)
    assert (found, told["error"], told["retryable"]) == (status, code, retryable)
    assert told["message"]
    assert told["request_id"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (a_pass(1, kind="sample_ref"), "no managed datasets"),
        (a_pass(1, metadata={"router_replay": {}}), "metadata['router_replay']"),
        (a_pass(1, more=1), "data[0] has more, which this server does not read"),
        (a_pass(1, tokens=[5, 6.5, 7]), "data[0].model_input.chunks[0].tokens must be a list of whole numbers"),
        (a_pass(1, weights=[[1.0], [1.0, 2.0], []]), "rows of different lengths"),
        (a_pass(1, weights=[1.0, None, 1.0]), "is no array of numbers"),
        (a_pass(1) | {"more": 1}, "more is not a field"),
        (
            {"payload": {"forward_backward_input": {"loss_fn": "cross_entropy", "data": []}}},
            "payload.seq_id is missing",
        ),
    ],
)
def test_a_refused_pass_names_the_field_and_changes_nothing(context, service, model_id, body, sentence):
    status, told = ask(context, "POST", f"/models/{model_id}/forward-backward-passes", body)
    assert status == 400
    assert sentence in told["message"]
    assert service.free_number(ids.inner(model_id)) == 1


@pytest.mark.parametrize("number", [10**400, True, None, [1], float("nan")])
def test_a_number_that_no_float_can_hold_is_refused(context, session_id, model_id, number):
    body = a_pass(1)
    body["payload"]["forward_backward_input"]["loss_fn_config"] = {"temperature": number}
    status, told = ask(context, "POST", f"/models/{model_id}/forward-backward-passes", body)
    assert (status, "temperature" in told["message"]) == (400, True)
    asked = {"sampling_session_seq_id": 1, "base_model": MODEL}
    sampler = good(context, "POST", f"/sessions/{session_id}/sampling-sessions", asked)["id"]
    body = {"prompt": {"chunks": [{"tokens": [5, 6]}]}, "loss_fn_config": {"temperature": number}}
    status, told = ask(context, "POST", f"/sampling-sessions/{sampler}/logprobs", body)
    assert (status, "temperature" in told["message"]) == (400, True)


@pytest.mark.parametrize("shape", [[2], [-1], [2**70], "3", [True, 3], [[3]]])
def test_a_shape_that_does_not_fit_is_refused(context, model_id, shape):
    body = a_pass(1)
    [one] = body["payload"]["forward_backward_input"]["data"]
    one["loss_fn_inputs"]["weights"]["shape"] = shape
    status, told = ask(context, "POST", f"/models/{model_id}/forward-backward-passes", body)
    assert status == 400
    assert "loss_fn_inputs['weights'].shape is" in told["message"]


def test_all_six_numbers_of_adam_must_be_there(context, model_id):
    for name in ADAM:
        body = step(1)
        del body["payload"]["adam_params"][name]
        status, told = ask(context, "POST", f"/models/{model_id}/optimizer-steps", body)
        assert (status, told["message"]) == (400, f"payload.adam_params.{name} is missing")


def test_a_target_that_does_not_count_needs_something_that_takes_it_out(context, model_id):
    one = {"model_input": {"chunks": [{"tokens": [5, 6]}]}, "loss_fn_inputs": {"target_tokens": [-100, 7]}}
    body = {"payload": {"seq_id": 1, "forward_backward_input": {"loss_fn": "cross_entropy", "data": [one]}}}
    status, told = ask(context, "POST", f"/models/{model_id}/forward-backward-passes", body)
    assert status == 400
    assert "has -100, and there is nothing that takes a target out" in told["message"]


def test_nothing_is_remembered_of_models_that_are_not_there(context):
    for number in range(3):
        status, told = ask(context, "POST", f"/models/nobody-{number}/optimizer-steps", step(1))
        assert (status, told["error"]) == (404, "not_found")
    assert not context.numbering._lines


# The binary transport


def packed(request, arrays, codec="zstd", wrong=None):
    decoded = b"".join(array.tobytes() for array in arrays)
    pack = zstandard.compress(decoded) if codec == "zstd" else decoded
    told = {"size_bytes": len(pack), "sha256": hashlib.sha256(pack).hexdigest(), "codec": codec}
    told |= {"decoded_size_bytes": len(decoded)} | (wrong or {})
    manifest = json.dumps({"version": 1, "request": request, "tensor_pack": told}).encode()
    parts = b'--b\r\nContent-Disposition: form-data; name="manifest"\r\n\r\n' + manifest
    parts += b'\r\n--b\r\nContent-Disposition: form-data; name="tensor_pack"\r\n\r\n' + pack + b"\r\n--b--\r\n"
    return "multipart/form-data; boundary=b", parts


def described(array, offset, wrong=None):
    told = {"format": "raw-tensor", "codec": "raw", "dtype": array.dtype.name, "shape": list(array.shape)}
    return {"$tensor": told | {"offset": offset, "size_bytes": array.nbytes} | (wrong or {})}


def test_a_packs_arrays_are_what_was_sent():
    first, second = np.array([5, 6, 7]), np.array([[0.5, 1.5]], np.float32)
    request = {"a": {"b": [described(first, 0)]}, "c": described(second, first.nbytes), "d": "x"}
    for codec in ("zstd", "raw"):
        found = body_of_pack(*packed(request, [first, second], codec))
        assert np.array_equal(found["a"]["b"][0], first)
        assert np.array_equal(found["c"], second)
        assert found["c"].dtype == np.float32
        assert found["d"] == "x"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sha256": "0" * 64}, "differs from its sha256"),
        ({"size_bytes": 1}, "its size_bytes is 1"),
        ({"decoded_size_bytes": 5}, "not its decoded_size_bytes"),
        ({"codec": "gzip"}, "codec is 'gzip'"),
    ],
)
def test_a_damaged_pack_is_refused(wrong, sentence):
    array = np.array([1, 2, 3])
    with pytest.raises(InvalidInput, match=sentence):
        body_of_pack(*packed({"a": described(array, 0)}, [array], "raw", wrong))


@pytest.mark.parametrize(
    "wrong", [{"offset": 8}, {"offset": -1}, {"shape": [4]}, {"shape": 3}, {"dtype": "float16"}, {"size_bytes": True}]
)
def test_an_array_outside_its_pack_is_refused(wrong):
    array = np.array([1, 2, 3])
    with pytest.raises(InvalidInput, match=r"^a: "):
        body_of_pack(*packed({"a": described(array, 0, wrong)}, [array]))


# Routes


def over_http(app, requests):
    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [await client.request(method, path, headers=headers) for method, path, headers in requests]

    return asyncio.run(run())


def test_one_path_is_tinkers_too_and_the_sdk_is_known_by_its_headers(service, session_id):
    only = FastAPI()
    only.include_router(tinker_router)
    tinkers = {(method, one.path) for one in iter_route_contexts(only.routes) for method in one.methods or ()}
    mine = {(one.method, f"/api/v1{one.pattern}") for one in ENDPOINTS}
    assert tinkers & mine == {(method, f"/api/v1{pattern}") for method, pattern in SHARED}
    path = f"/api/v1/sessions/{session_id}"
    headers = ({}, {"X-WEAVER-API-KEY": "k"}, {"User-Agent": "weaver-sdk/1.19.2"})
    answers = [answer.json() for answer in over_http(create_app(service), [("GET", path, one) for one in headers])]
    assert "training_run_ids" in answers[0]
    assert [answer["id"] for answer in answers[1:]] == [session_id, session_id]


def test_a_key_is_taken_from_either_header_and_asked_for(service):
    app, path = create_app(service, (KEY,)), "/api/v1/organizations"
    headers = ({"X-WEAVER-API-KEY": KEY}, {"Authorization": f"Bearer {KEY}"}, {"X-WEAVER-API-KEY": "tml-no"}, {})
    answers = over_http(app, [("GET", path, one) for one in headers])
    assert [answer.status_code for answer in answers] == [200, 200, 401, 401]
    assert answers[2].json()["error"] == "unauthorized"


def test_what_is_not_there_is_told_to_each_client_in_its_own_shape(service):
    sdk = {"User-Agent": "weaver-sdk/1.19.2"}
    app = create_app(service)
    answers = over_http(app, [("GET", "/api/v1/x", sdk), ("PUT", "/api/v1/organizations", sdk), ("GET", "/x", {})])
    assert [answer.status_code for answer in answers] == [404, 405, 404]
    assert [answer.json().get("error") for answer in answers] == ["not_found", "method_not_allowed", None]


def test_every_endpoint_with_a_body_says_what_it_reads():
    without = {one.pattern for one in ENDPOINTS if one.method in ("POST", "PATCH") and one.handler not in READS}
    read_nothing = {"/sessions/{session_id}/heartbeat"}
    refused = {one.pattern for one in ENDPOINTS if one.handler.__name__ == "refuse"}
    assert without <= read_nothing | refused
