"""Requests arrive in any order, twice or never; what takes effect is each call once, in call order."""

import json
from contextlib import closing
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
import tinker
from fastapi.testclient import TestClient
from tinker.proto.tinker_public_pb2 import ForwardBackwardRequest

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.server.app import create_app
from weaver.service import Service

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
# A large eps: with a tiny one, the first step is the sign of the gradient, and that of a tiny one is chance.
STEP = tinker.AdamParams(learning_rate=0.05, eps=10.0)
STILL = tinker.AdamParams(learning_rate=0.0)
PROMPT = tinker.ModelInput.from_ints([5, 6, 7])

OPERATIONS = (
    "create_model",
    "forward_backward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "load_weights",
    "create_sampling_session",
    "asample",
)


@dataclass
class Exchange:
    """A request as it arrived, and its answer."""

    operation: str
    headers: dict
    body: bytes = b""
    answer: bytes = field(default=b"", repr=False)


class Recorder:
    """ASGI middleware that keeps every exchange, in the order in which the requests arrive."""

    def __init__(self, app, exchanges):
        self.app, self.exchanges = app, exchanges

    async def __call__(self, scope, receive, send):
        names = {name.decode(): value.decode() for name, value in scope["headers"]}
        kept = Exchange(scope["path"].rpartition("/")[2], names)
        self.exchanges.append(kept)

        async def receiving():
            message = await receive()
            kept.body += message.get("body", b"")
            return message

        async def sending(message):
            kept.answer += message.get("body", b"")
            await send(message)

        await self.app(scope, receiving, sending)


@pytest.fixture(scope="module", autouse=True)
def exchanges(server):
    """All that has reached the server; put in place before its first request."""
    kept = []
    server.app.add_middleware(Recorder, exchanges=kept)
    return kept


@pytest.fixture
def send(server):
    """Send recorded bytes, or other ones, once more."""

    def again(exchange, body=None):
        headers = {name: exchange.headers[name] for name in ("content-type", "x-api-key")}
        url = f"{server.url}/api/v1/{exchange.operation}"
        return httpx.post(url, content=exchange.body if body is None else body, headers=headers, timeout=60)

    return again


def saved(server, client, name):
    """The adapter's tensors and the optimizer's of this moment."""
    folder = server.folder(client.save_state(name, overwrite=True).result().path)
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = np.linalg.norm(found[name] - tensor) / max(np.linalg.norm(tensor), 1e-12)
        assert difference <= tolerance, f"{name}: {difference:.1e}"


def test_a_later_chunk_arrives_first_and_the_gradient_is_the_whole_batchs(
    trained, data, exchanges, reference, measured, assert_same_gradients
):
    """1031 datums are two requests. They repeat five, so that the reference needs five weighted ones."""
    client, kinds = trained(), data.supervised(1, 2, 3, 2, 4)
    numbers = [index % 3 for index in range(1024)] + [3 + index % 2 for index in range(7)]
    seen = len(exchanges)
    output = client.forward_backward([kinds[number] for number in numbers], "cross_entropy").result()

    arrived = [
        ForwardBackwardRequest.FromString(one.body) for one in exchanges[seen:] if one.operation == "forward_backward"
    ]
    assert [len(request.data) for request in arrived] == [7, 1024]
    assert arrived[0].seq_id == arrived[1].seq_id + 1

    times = iter([numbers.count(number) for number in range(5)])
    loss, logprobs, gradients = reference(client, LLAMA).loss_and_gradients(
        kinds, lambda lp, given: -(lp * given["weights"]).sum() * next(times)
    )
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5)
    for number, found in zip(numbers, output.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(found["logprobs"].to_numpy(), logprobs[number], atol=1e-4)
    client.forward_backward([kinds[number] for number in numbers], "cross_entropy")
    assert_same_gradients(measured(client), {name: 2 * gradient for name, gradient in gradients.items()})


def test_calls_that_are_not_waited_for_take_effect_in_call_order(server, service_client, data):
    """The same calls, waited for one by one, are what must come out."""
    first, second, third = data.supervised(9, 4), data.supervised(12), data.supervised(3, 20)

    def calls(client):
        yield client.forward_backward(first, "cross_entropy")
        yield client.optim_step(STEP)
        yield client.forward_backward(second, "cross_entropy")
        yield client.forward_backward(third, "cross_entropy")
        yield client.optim_step(STEP)
        yield client.save_state("middle")
        yield client.forward_backward(first, "cross_entropy")
        yield client.optim_step(tinker.AdamParams(learning_rate=0.1))
        yield client.forward(second, "cross_entropy")
        yield client.load_state(f"tinker://{client.model_id}/weights/middle")
        yield client.forward(second, "cross_entropy")
        yield client.forward_backward(third, "cross_entropy")
        yield client.optim_step(STEP)
        yield client.save_state("end")

    clients = [service_client.create_lora_training_client(LLAMA, rank=4, seed=3).result() for _ in range(2)]
    patient = [call.result() for call in calls(clients[0])]
    hasty = [call.result() for call in list(calls(clients[1]))]
    for name in ("middle", "end"):
        paths = [f"tinker://{client.model_id}/weights/{name}" for client in clients]
        assert_close(server.tensors(paths[1]), server.tensors(paths[0]))
    for one, other in zip(patient, hasty):
        for name, value in (getattr(one, "metrics", None) or {}).items():
            assert other.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-4)
    losses = [patient[place].metrics["loss:sum"] for place in (8, 10)]
    assert abs(losses[0] - losses[1]) > 0.01, "the load must have made a difference"


@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
def test_two_clients_in_turns_equal_the_same_two_one_after_the_other(server, service_client, data, base_model):
    batches = {seed: [data.supervised(9, 4 + seed), data.supervised(12), data.supervised(3, 20)] for seed in (1, 2)}

    def client(seed):
        return service_client.create_lora_training_client(base_model, rank=2 + seed, seed=seed).result()

    def train(client, batch):
        return [client.forward_backward(batch, "cross_entropy"), client.optim_step(STEP)]

    def weights(client):
        return server.tensors(client.save_state("end").result().path)

    turns = {seed: client(seed) for seed in batches}
    futures = [
        future for number in range(3) for seed in batches for future in train(turns[seed], batches[seed][number])
    ]
    together = [future.result().metrics for future in futures]
    alone = {seed: client(seed) for seed in batches}
    for seed, one in alone.items():
        metrics = [future.result().metrics for batch in batches[seed] for future in train(one, batch)]
        mine = [metrics for place, metrics in enumerate(together) if place // 2 % 2 == seed - 1]
        for found, expected in zip(mine, metrics, strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert_close(weights(turns[seed]), weights(one))


@dataclass
class Run:
    """A run with every operation, its requests, and the client it left, with gradients accumulated."""

    client: tinker.TrainingClient
    batch: list
    exchanges: list

    def of(self, operation):
        found = [one for one in self.exchanges if one.operation == operation]
        assert found
        return found

    def state_of(self, server):
        """Adapter, optimizer and the files there are."""
        tensors = saved(server, self.client, "now")
        folders = {
            path.relative_to(server.data_dir) for path in server.data_dir.glob("*/**/*") if "now" not in str(path)
        }
        return tensors, folders


@pytest.fixture(scope="module")
def run(server, exchanges):
    begin = len(exchanges)
    with server.client() as service_client:
        client = service_client.create_lora_training_client(LLAMA, rank=3).result()
        datum = tinker.Datum(PROMPT, {"target_tokens": np.array([6, 7, 8]), "weights": np.ones(3, np.float32)})
        client.forward_backward([datum], "cross_entropy").result()
        client.optim_step(STEP).result()
        path = client.save_state("kept").result().path
        named = client.save_weights_for_sampler("named").result().path
        sampler = client.save_weights_and_get_sampling_client().result()
        sampler.sample(PROMPT, 2, tinker.SamplingParams(max_tokens=5, stop=[])).result()
        client.load_state(path).result()
        service_client.create_training_client_from_state_with_optimizer(path).result()
        for source in ({"model_path": named}, {"base_model": LLAMA}):
            sampler = service_client.create_sampling_client(**source).result()
            sampler.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=4)).result()
        client.forward_backward([datum], "cross_entropy").result()
        yield Run(client, [datum], exchanges[begin:])


def test_the_run_has_every_operation(run):
    counts = {operation: len(run.of(operation)) for operation in OPERATIONS}
    assert counts == {
        "create_model": 1,
        "forward_backward": 2,
        "optim_step": 1,
        "save_weights": 1,
        "save_weights_for_sampler": 2,
        "load_weights": 2,
        "create_sampling_session": 2,
        "asample": 3,
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_retry_of_an_operation_gets_the_first_ones_ticket_and_changes_nothing(server, run, send, operation):
    before = run.state_of(server)
    for exchange in run.of(operation):
        for _ in range(2):
            answer = send(exchange)
            assert (answer.status_code, answer.content) == (200, exchange.answer)
    assert run.state_of(server) == before


def test_results_can_be_fetched_again(run, send):
    fetched = [one for one in run.of("retrieve_future") if b"queue_state" not in one.answer]
    assert len(fetched) == 12
    for exchange in fetched:
        assert send(exchange).content == exchange.answer


def test_retried_passes_add_no_gradient(run, send):
    for exchange in run.of("forward_backward"):
        send(exchange)
    norm = run.client.optim_step(STILL).result().metrics["grad_norm"]
    run.client.forward_backward(run.batch, "cross_entropy").result()
    assert norm == run.client.optim_step(STILL).result().metrics["grad_norm"] > 0
    run.client.forward_backward(run.batch, "cross_entropy").result()


def test_a_retried_snapshot_may_come_with_a_new_number_for_its_sampling_session(run, send):
    """A quirk of the SDK, which counts those numbers on every attempt."""
    [exchange] = [one for one in run.of("save_weights_for_sampler") if b"sampling_session_seq_id" in one.body]
    body = json.loads(exchange.body)
    retried = json.dumps(body | {"sampling_session_seq_id": body["sampling_session_seq_id"] + 7}).encode()
    assert send(exchange, retried).content == exchange.answer


def _changed(exchange, changes):
    """The request with other values at paths like `adam_params.learning_rate`."""
    body = json.loads(exchange.body)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = body
        for name in parents:
            place = place[name]
        place[last] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("operation", "changes", "difference"),
    [
        ("create_model", {"lora_config.rank": 5}, "this CreateModel has another lora;"),
        ("create_model", {"base_model": QWEN}, "this CreateModel has another base_model;"),
        ("optim_step", {"adam_params.learning_rate": 0.5}, "this OptimStep has another params;"),
        ("save_weights", {"path": "other"}, "this SaveState has another name;"),
        ("save_weights", {"overwrite": True, "path": "x"}, "this SaveState has another name and overwrite;"),
        ("save_weights_for_sampler", {"path": "other"}, "this SaveForSampler has another name;"),
        ("load_weights", {"optimizer": True}, "this LoadState has another optimizer;"),
        ("create_sampling_session", {"model_path": None, "base_model": QWEN}, "another base_model and model_path"),
        ("asample", {"num_samples": 3}, "this one has another num_samples;"),
        ("asample", {"sampling_params.max_tokens": 2}, "this one has another params;"),
    ],
)
def test_a_number_used_for_something_else_is_refused_with_the_difference(
    server, run, send, operation, changes, difference
):
    before = run.state_of(server)
    exchange = run.of(operation)[0]
    answer = send(exchange, _changed(exchange, changes))
    assert answer.status_code == 400
    assert difference in answer.json()["detail"]
    assert "used" in answer.json()["detail"]
    assert send(exchange).content == exchange.answer
    assert run.state_of(server) == before


def test_another_pass_under_a_used_number_is_refused_with_the_difference(run, send):
    exchange = run.of("forward_backward")[0]
    message = ForwardBackwardRequest.FromString(exchange.body)
    message.data[0].loss_fn_inputs["weights"].dense = np.full(3, 2.0, "<f4").tobytes()
    answer = send(exchange, message.SerializeToString())
    assert (answer.status_code, "this ForwardBackward has another data;" in answer.text) == (400, True)
    message = ForwardBackwardRequest.FromString(exchange.body)
    message.seq_id = json.loads(run.of("optim_step")[0].body)["seq_id"]
    answer = send(exchange, message.SerializeToString())
    assert answer.status_code == 400
    assert "that was OptimStep, this is ForwardBackward;" in answer.json()["detail"]


def test_a_refused_request_does_not_block_the_next(trained, data):
    """The client goes on to the next number. The server gives a lost one 330 s, the test waits for 60."""
    client = trained()
    bad = client.forward_backward(data.supervised(5), "no such loss")
    good = client.forward_backward(data.supervised(5), "cross_entropy")
    bad_step, step = client.optim_step(tinker.AdamParams(beta1=1.0)), client.optim_step(STEP)
    for refused in (bad, bad_step):
        with pytest.raises(tinker.BadRequestError):
            refused.result(timeout=60)
    assert good.result(timeout=60).metrics
    assert step.result(timeout=60).metrics["grad_norm"] > 0


def test_a_failed_operation_does_not_block_the_next(trained):
    client = trained()
    failed, step = client.load_state(f"tinker://{client.model_id}/weights/none"), client.optim_step(STEP)
    with pytest.raises(tinker.RequestFailedError, match="there is no checkpoint"):
        failed.result(timeout=60)
    assert step.result(timeout=60).metrics == {"grad_norm": 0.0}


def test_a_number_that_never_arrives_is_given_up_and_refused_when_it_comes_later(folders, tmp_path):
    source = ModelSource(LLAMA, str(folders[LLAMA]), "cpu")
    service = Service(Config(models=(source,), data_dir=tmp_path, gap_seconds=0.01))

    def post(path, **body):
        answer = client.post(f"/api/v1/{path}", json=body)
        return answer.status_code, answer.json()

    with closing(service), TestClient(create_app(service, poll_seconds=30.0)) as client:  # one event loop for all
        session_id = post("create_session")[1]["session_id"]
        promise = post("create_model", session_id=session_id, model_seq_id=0, base_model=LLAMA, lora_config={"rank": 2})
        model_id = promise[1]["model_id"]
        step = {"model_id": model_id, "adam_params": {"learning_rate": 0.1}}
        _, later = post("optim_step", seq_id=2, **step)
        assert post("retrieve_future", request_id=later["request_id"]) == (200, {"metrics": {"grad_norm": 0.0}})
        status, refusal = post("optim_step", seq_id=1, **step)
        assert (status, "given up after 0.01 s" in refusal["detail"]) == (400, True)
        _, next_one = post("optim_step", seq_id=3, **step)
        assert post("retrieve_future", request_id=next_one["request_id"])[0] == 200
