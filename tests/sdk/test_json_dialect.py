"""Requests as SDKs before 0.25 wrote them, against a real server; `make test-sdks` runs those SDKs themselves."""

import io
import tarfile
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import numpy as np
import pytest
import tinker
from tinker.proto import tinker_public_pb2 as vendor
from tinker.proto.response_conv import deserialize_forward_backward_output, deserialize_sample_response

LLAMA = "tiny/llama"
JSON, PROTOBUF, BOTH = "application/json", "application/x-protobuf", "application/x-protobuf, application/json"
HOUR = 3600
# A step that is a plain multiple of the gradient: -1000 · g.
MEASURE = {"learning_rate": 1e12, "beta1": 0.0, "beta2": 0.0, "eps": 1e9}


class OldClient:
    """Sends what SDK 0.16.1 sends: JSON, and no field that was not set."""

    def __init__(self, server, http):
        self.server, self.http = server, http
        self.session = self.ask("create_session", tags=[], user_metadata={}, sdk_version="0.16.1")["session_id"]
        self.models = 0

    def post(self, path, body, accept=JSON):
        return self.http.post(path, json=body, headers={"Accept": accept})

    def ask(self, endpoint, /, **body):
        answer = self.post(endpoint, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def poll(self, request_id, accept=JSON):
        answer = self.post("retrieve_future", {"request_id": request_id, "allow_metadata_only": False}, accept)
        assert answer.status_code == 200, answer.text
        return answer

    def result(self, endpoint, /, **body):
        return self.poll(self.ask(endpoint, **body)["request_id"]).json()

    def model(self, rank=4):
        body = {"session_id": self.session, "model_seq_id": self.models, "base_model": LLAMA}
        self.models += 1
        return self.result("create_model", **body, lora_config={"rank": rank, "seed": 7})["model_id"]

    def trained(self):
        """A model after one step, so that B is not zero; its next number is 3."""
        model = self.model()
        batch = [datum([5, 6, 7], target_tokens=[6, 7, 8], weights=[1.0, 0.5, 2.0])]
        self.pass_(model, 1, batch)
        self.result("optim_step", model_id=model, seq_id=2, adam_params={"learning_rate": 0.05})
        return model

    def pass_(self, model, number, data, path="forward_backward", loss="cross_entropy", config=None):
        asked = {"data": data, "loss_fn": loss, "loss_fn_config": config}
        field = {"forward_backward": "forward_backward_input", "forward": "forward_input"}[path]
        return self.result(path, model_id=model, seq_id=number, **{field: asked})

    def tensors(self, model, number):
        path = self.result("save_weights", model_id=model, path=f"at-{number}", seq_id=number)["path"]
        return self.server.tensors(path)


def tensor(values):
    array = np.asarray(values)
    dtype = "int64" if array.dtype.kind == "i" else "float32"
    return {"data": array.ravel().tolist(), "dtype": dtype, "shape": list(array.shape)}


def datum(tokens, **inputs):
    named = {name: tensor(values) for name, values in inputs.items()}
    return {"loss_fn_inputs": named, "model_input": {"chunks": [{"tokens": list(tokens)}]}}


def in_protobuf(model, number, data, loss):
    message = vendor.ForwardBackwardRequest(model_id=model, seq_id=number, loss_fn=loss)
    for one in data:
        added = message.data.add()
        for chunk in one["model_input"]["chunks"]:
            added.model_input.add().encoded_text.tokens = np.array(chunk["tokens"], "<i4").tobytes()
        for name, value in one["loss_fn_inputs"].items():
            dtype, code = {"int64": (vendor.DTYPE_INT64, "<i8"), "float32": (vendor.DTYPE_FLOAT32, "<f4")}[
                value["dtype"]
            ]
            added.loss_fn_inputs[name].dense = np.array(value["data"], code).tobytes()
            added.loss_fn_inputs[name].dtype = dtype
            added.loss_fn_inputs[name].shape.extend(value["shape"])
    return message.SerializeToString()


@contextmanager
def connected(server):
    with httpx.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": "tml-test"}, timeout=60) as http:
        yield OldClient(server, http)


@pytest.fixture
def old(server):
    with connected(server) as client:
        yield client


@pytest.fixture
def batch():
    """One and several targets per token; tokens in pieces; weights of both signs."""
    rng = np.random.default_rng(2)
    first = datum([5, 6, 7, 8], target_tokens=[6, 7, 8, 9], weights=[1.5, 0.0, -1.25, 0.5])
    first["model_input"]["chunks"] = [{"tokens": [5]}, {"tokens": [6, 7, 8]}]
    targets = rng.integers(2, 90, (3, 2))
    return [first, datum([9, 8, 7], target_tokens=targets, weights=rng.uniform(-1, 1, (3, 2)).astype(np.float32))]


def test_gradients_and_logprobs_of_a_pass_in_json_are_those_in_protobuf(old, batch, assert_same_gradients):
    by_json, by_protobuf = old.trained(), old.trained()
    found = old.pass_(by_json, 3, batch)
    body = in_protobuf(by_protobuf, 3, batch, "cross_entropy")
    promise = old.http.post("forward_backward", content=body, headers={"Content-Type": PROTOBUF}).json()
    expected = deserialize_forward_backward_output(old.poll(promise["request_id"], PROTOBUF).content)
    assert found["metrics"] == expected.metrics
    for one, other in zip(found["loss_fn_outputs"], expected.loss_fn_outputs, strict=True):
        assert one["logprobs"]["shape"] == other["logprobs"].shape
        np.testing.assert_array_equal(np.float32(one["logprobs"]["data"]), other["logprobs"].to_numpy().ravel())
    gradients = []
    for model in (by_json, by_protobuf):
        before = old.tensors(model, 4)
        old.result("optim_step", model_id=model, seq_id=5, adam_params=MEASURE)
        after = old.tensors(model, 6)
        gradients.append({name: (before[name] - after[name]) / 1000 for name in before})
    assert_same_gradients(*gradients, tolerance=1e-6)


def test_forward_computes_the_same_and_leaves_no_gradient(old, batch):
    model = old.trained()
    assert old.pass_(model, 3, batch, "forward") == old.pass_(model, 4, batch, "forward")
    step = old.result("optim_step", model_id=model, seq_id=5, adam_params={"learning_rate": 1.0, "beta1": 0.0})
    assert step["metrics"]["grad_norm"] == 0


def test_what_a_step_does_not_set_is_the_documented_default(old, batch):
    full = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    found = []
    for params in ({}, {"learning_rate": 1e-4}, {"learning_rate": 1e-4} | full):
        model = old.trained()
        old.pass_(model, 3, batch)
        old.result("optim_step", model_id=model, seq_id=4, adam_params=params)
        found.append(old.tensors(model, 5))
    for name, expected in found[2].items():
        np.testing.assert_array_equal(found[0][name], expected)
        np.testing.assert_array_equal(found[1][name], expected)


def test_the_config_of_a_loss_is_read(old):
    model = old.trained()
    policy = [datum([5, 6], target_tokens=[6, 7], logprobs=[-9.0, -9.0], advantages=[1.0, 1.0])]
    loose = {"clip_low_threshold": 0.0, "clip_high_threshold": 1e9}
    clipped = old.pass_(model, 3, policy, "forward", "ppo")["metrics"]["loss:sum"]
    assert clipped == pytest.approx(-2 * 1.2)
    assert old.pass_(model, 4, policy, "forward", "ppo", loose)["metrics"]["loss:sum"] < clipped


def test_a_refused_pass_names_its_field_and_gives_up_its_number(old, batch):
    model = old.trained()
    batch[1]["loss_fn_inputs"]["weights"]["data"][2] = None
    asked = {"data": batch, "loss_fn": "cross_entropy"}
    refused = old.post("forward_backward", {"model_id": model, "seq_id": 3, "forward_backward_input": asked})
    assert refused.status_code == 400
    assert refused.json()["detail"].startswith(
        "forward_backward_input.data[1].loss_fn_inputs.weights.data holds null, which is how JSON has NaN"
    )
    batch[1]["loss_fn_inputs"]["weights"]["data"][2] = 1.5
    batch[1]["loss_fn_inputs"]["weights"]["shape"] = [7]
    refused = old.post("forward_backward", {"model_id": model, "seq_id": 4, "forward_backward_input": asked})
    assert refused.json()["detail"].startswith("data[1].loss_fn_inputs['weights'] declares the shape [7]")
    assert old.result("optim_step", model_id=model, seq_id=5, adam_params={})["metrics"]["grad_norm"] == 0


def test_a_state_is_resumed_in_the_order_of_old_sdks(old, batch):
    """`/weights_info`, then `/create_model`, then `/load_weights` as the model's first operation."""
    model = old.trained()
    path = old.result("save_weights", model_id=model, path="state", seq_id=3)["path"]
    info = old.ask("weights_info", tinker_path=path)
    assert (info["base_model"], info["lora_rank"]) == (LLAMA, 4)
    resumed = old.model(rank=info["lora_rank"])
    old.result("load_weights", model_id=resumed, path=path, seq_id=1, optimizer=True)
    assert old.pass_(resumed, 2, batch, "forward") == old.pass_(model, 4, batch, "forward")


def sampled(old, **fields):
    session = old.ask("create_sampling_session", session_id=old.session, sampling_session_seq_id=0, base_model=LLAMA)
    body = {"sampling_session_id": session["sampling_session_id"], "seq_id": 0, "num_samples": 2}
    prompt = {"chunks": [{"tokens": [5, 6]}, {"tokens": [7]}]}
    params = {"max_tokens": 4, "seed": 3, "temperature": 1.0, "top_k": -1, "top_p": 1.0}
    return old.ask("asample", **body, prompt=prompt, sampling_params=params, **fields)["request_id"]


def test_a_sample_in_json_is_the_sample_in_protobuf(old):
    request_id = sampled(old, prompt_logprobs=True, topk_prompt_logprobs=2)
    found = old.poll(request_id).json()
    expected = deserialize_sample_response(old.poll(request_id, PROTOBUF).content)
    for one, other in zip(found["sequences"], expected.sequences, strict=True):
        assert (one["tokens"], one["stop_reason"]) == (list(other.tokens), other.stop_reason)
        assert one["logprobs"] == list(other.logprobs)
    assert found["prompt_logprobs"] == list(expected.prompt_logprobs)
    assert found["prompt_logprobs"][0] is None
    top = [row and [tuple(pair) for pair in row] for row in found["topk_prompt_logprobs"]]
    assert top == list(expected.topk_prompt_logprobs)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (JSON, JSON),
        (PROTOBUF, PROTOBUF),
        (BOTH, PROTOBUF),
        ("*/*", PROTOBUF),
        ("Application/JSON;q=0.9", JSON),
        ("application/json, */*;q=0.1", JSON),
    ],
)
def test_a_result_comes_in_what_the_poll_offers_to_read(old, accept, content_type):
    model, request = old.trained(), [datum([5, 6], target_tokens=[6, 7], weights=[1.0, 1.0])]
    asked = {"data": request, "loss_fn": "cross_entropy"}
    passed = old.ask("forward", model_id=model, seq_id=3, forward_input=asked)["request_id"]
    for request_id in (passed, sampled(old)):
        assert old.poll(request_id, accept).headers["content-type"] == content_type


def test_a_ragged_result_is_json_to_those_who_read_both(old, batch):
    """0.22.7 gives every datum the trailing shape of the first record of protobuf."""
    promise = old.ask(
        "forward", model_id=old.trained(), seq_id=3, forward_input={"data": batch, "loss_fn": "cross_entropy"}
    )
    assert old.poll(promise["request_id"], BOTH).headers["content-type"] == JSON
    assert old.poll(promise["request_id"], PROTOBUF).headers["content-type"] == PROTOBUF


def archive_of(old, path, accept="application/gzip"):
    run, kind, name = path.removeprefix("tinker://").split("/")
    headers = [("Accept", JSON), ("accept", accept)]  # SDKs up to 0.22.1 do send it twice
    return old.http.get(f"training_runs/{run}/checkpoints/{kind}/{name}/archive", headers=headers)


@pytest.fixture
def saved(timed):
    """A client of a server whose clocks stand still, and one checkpoint of each kind."""
    with timed.client() as service_client, connected(timed) as client:
        training = service_client.create_lora_training_client(LLAMA, rank=4, seed=3).result()
        paths = [
            training.save_state("state").result().path,
            training.save_weights_for_sampler("snapshot").result().path,
            training.save_weights_external("out").result().path,
        ]
        yield client, paths


def test_an_archive_is_a_link_to_all_files_of_a_checkpoint(saved, timed):
    client, paths = saved
    for path in paths:
        answer = archive_of(client, path)
        assert answer.status_code == 302
        assert parsedate_to_datetime(answer.headers["expires"]).timestamp() == int(timed.clock.now) + HOUR
        download = httpx.get(answer.headers["location"])  # no key
        assert download.headers["content-type"] == "application/x-tar"
        with tarfile.open(fileobj=io.BytesIO(download.content), mode="r:") as archive:
            held = {member.name: archive.extractfile(member).read() for member in archive}
        assert held.pop("checkpoint_complete") == b""
        assert held == {file.name: file.read_bytes() for file in timed.folder(path).iterdir()}


def test_the_link_to_an_archive_is_told_in_json_to_who_reads_that(saved, timed):
    """From 0.22.2 on SDKs do."""
    client, (state, *_) = saved
    told = archive_of(client, state, JSON)
    assert told.status_code == 200
    assert told.json()["url"] == archive_of(client, state).headers["location"]
    expires = datetime.fromisoformat(told.json()["expires"])
    assert expires == datetime.fromtimestamp(int(timed.clock.now) + HOUR, UTC)


def test_a_link_opens_one_checkpoint_for_an_hour(saved, timed):
    client, (state, snapshot, _) = saved
    link = archive_of(client, state).headers["location"]
    other = archive_of(client, snapshot).headers["location"]
    assert httpx.get(link.partition("?")[0] + "?" + other.partition("?")[2]).status_code == 403
    assert httpx.get(link.partition("?")[0]).status_code == 400
    timed.clock.pass_by(HOUR)
    refused = httpx.get(link)
    assert (refused.status_code, refused.json()["detail"]) == (403, "the link has expired; ask for a new one")


def test_there_is_no_archive_of_what_is_not_there_or_without_a_key(saved, timed):
    client, (state, *_) = saved
    link = archive_of(client, state).headers["location"]
    timed.rest().delete_checkpoint_from_tinker_path(state).result()
    assert httpx.get(link).status_code == 404
    gone = archive_of(client, state)
    assert (gone.status_code, gone.json()["detail"]) == (404, f"there is no checkpoint '{state}', or it has expired")


def test_the_latest_sdk_goes_on_with_what_an_old_one_trained(old, server, batch):
    model = old.trained()
    path = old.result("save_weights", model_id=model, path="state", seq_id=3)["path"]
    expected = old.pass_(model, 4, batch[:1], "forward")["metrics"]["loss:sum"]
    inputs = {"target_tokens": np.array([6, 7, 8, 9]), "weights": np.array([1.5, 0.0, -1.25, 0.5], np.float32)}
    given = tinker.Datum(model_input=tinker.ModelInput.from_ints([5, 6, 7, 8]), loss_fn_inputs=inputs)
    with server.client() as client:
        resumed = client.create_training_client_from_state(path).result()
        assert resumed.forward([given], "cross_entropy").result().metrics["loss:sum"] == pytest.approx(expected)
