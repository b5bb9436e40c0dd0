"""A sample that nobody waits for any more stops; training never does."""

from concurrent.futures import CancelledError
from queue import SimpleQueue

import httpx
import pytest
import tinker

LLAMA = "tiny/llama"
PROMPT = tinker.ModelInput.from_ints([5, 6, 7])
LONG = tinker.SamplingParams(max_tokens=250, stop=[])
MANY_SAMPLES = 16_000


def post(server, path, body):
    return httpx.post(f"{server.url}/api/v1/{path}", json=body, headers={"X-API-Key": "tml-test"}, timeout=60)


def drawn_tokens(server):
    """How many tokens the embedded sampler has drawn so far."""
    return server.service._base_models.sampler(LLAMA)._opening.result()._loop.statistics.drawn_tokens


def one_token(sampler):
    params = tinker.SamplingParams(max_tokens=1, stop=[])
    return sampler.sample(PROMPT, 1, params).result(timeout=60).sequences[0].tokens


@pytest.fixture
def tickets(server, monkeypatch):
    """The tickets of samples that the server accepts from now on, as they come."""
    accepted = SimpleQueue()
    sample = server.service.sample

    def noting(*args, **options):
        ticket = sample(*args, **options)
        accepted.put(ticket)
        return ticket

    monkeypatch.setattr(server.service, "sample", noting)
    return accepted


@pytest.fixture
def polled(server, monkeypatch):
    """The ids that clients ask for from now on, as they ask: only then does the SDK know what it could cancel."""
    asked = SimpleQueue()
    future = server.service.future

    def noting(request_id):
        asked.put(request_id)
        return future(request_id)

    monkeypatch.setattr(server.service, "future", noting)
    return asked


def assert_nothing_is_drawn_but_what_is_asked_for(server, sampler):
    one_token(sampler)  # by the step that draws it, cancelled rows have left
    before = drawn_tokens(server)
    one_token(sampler)
    assert drawn_tokens(server) == before + 1


def test_a_sample_whose_future_is_cancelled_stops_at_the_next_token(server, service_client, polled):
    sampler = service_client.create_sampling_client(base_model=LLAMA).result()
    one_token(sampler)
    first = polled.get(timeout=60)
    before = drawn_tokens(server)
    future = sampler.sample(PROMPT, MANY_SAMPLES, LONG)
    request_id = next(each for each in iter(lambda: polled.get(timeout=60), None) if each != first)
    assert future._future.cancel()
    with pytest.raises(CancelledError):
        server.service.future(request_id).result(timeout=60)
    assert_nothing_is_drawn_but_what_is_asked_for(server, sampler)
    assert drawn_tokens(server) - before < MANY_SAMPLES * 250 / 10


def test_cancelling_one_request_leaves_the_others(server, service_client, tickets):
    sampler = service_client.create_sampling_client(base_model=LLAMA).result()
    seeded = tinker.SamplingParams(max_tokens=120, seed=3, stop=[])
    alone = sampler.sample(PROMPT, 1, seeded).result(timeout=60).sequences[0].tokens
    tickets.get(timeout=60)
    cancelled = sampler.sample(PROMPT, MANY_SAMPLES, LONG)
    request_id = tickets.get(timeout=60).request_id
    kept = sampler.sample(PROMPT, 1, seeded)
    tickets.get(timeout=60)
    assert post(server, "cancel_future", {"request_id": request_id}).status_code == 200
    assert kept.result(timeout=60).sequences[0].tokens == alone
    assert post(server, "cancel_future", {"request_id": request_id}).status_code == 200  # again is fine
    assert post(server, "retrieve_future", {"request_id": request_id}).status_code == 410
    cancelled._future.cancel()


def test_unknown_and_settled_requests_can_be_cancelled_without_effect(server, service_client, tickets):
    sampler = service_client.create_sampling_client(base_model=LLAMA).result()
    one_token(sampler)
    request_id = tickets.get(timeout=60).request_id
    assert post(server, "cancel_future", {"request_id": request_id}).status_code == 200
    assert post(server, "retrieve_future", {"request_id": request_id}).status_code == 200
    assert post(server, "cancel_future", {"request_id": "never-was"}).status_code == 200
    assert post(server, "cancel_future", {}).json() == {"detail": "request_id is missing"}


def test_training_cannot_be_cancelled(server, trained, data):
    client = trained()
    future = client.forward_backward(data.supervised(6), "cross_entropy")
    future.result()
    request_id = next(reversed(server.service._futures._kept))
    refused = post(server, "cancel_future", {"request_id": request_id})
    assert refused.status_code == 400
    assert refused.json()["detail"].endswith("is no sample: a training operation that was accepted happens")
    assert client.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"] > 0
