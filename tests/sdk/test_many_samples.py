"""Clients that wait for all their samples with one poll, and clones of one client."""

import httpx
import pytest
import tinker

from weaver.compat.tinker.routes import sessions

LLAMA = "tiny/llama"
SESSION = "sampling_session"


def post(server, path, body):
    return httpx.post(f"{server.url}/api/v1/{path}", json=body, headers={"X-API-Key": "tml-test"}, timeout=60)


def ask(sampler, start, tokens=3):
    params = tinker.SamplingParams(max_tokens=tokens, stop=[], temperature=0)
    return sampler.sample(tinker.ModelInput.from_ints([start, start + 1]), 1, params)


def answers(futures):
    return [future.result(timeout=60).sequences[0].tokens for future in futures]


@pytest.fixture
def one_poll(monkeypatch):
    """The server tells its clients to wait with one poll for all samples of a session."""
    monkeypatch.setitem(sessions._CLIENT_CONFIG, "sample_use_retrieve_futures", True)


def test_many_samples_come_with_one_poll(server, service_client, one_poll):
    separately = service_client.create_sampling_client(base_model=LLAMA).result()
    with server.client() as fresh:
        together = fresh.create_sampling_client(base_model=LLAMA).result()
        assert fresh.holder.get_client_config().sample_use_retrieve_futures
        starts = [2 + number % 90 for number in range(200)]
        found = answers([ask(together, start) for start in starts])
        assert found == answers([ask(separately, start) for start in starts])
        with pytest.raises(tinker.BadRequestError, match="prompt"):
            together.sample(tinker.ModelInput.from_ints([97]), 1, tinker.SamplingParams(max_tokens=1)).result(60)
        strings = tinker.SamplingParams(max_tokens=1, stop="a")
        with pytest.raises(tinker.RequestFailedError, match="stop strings need a tokenizer"):
            together.sample(tinker.ModelInput.from_ints([5]), 1, strings).result(timeout=60)
        assert answers([ask(together, 5)]) == answers([ask(separately, 5)])


def test_a_client_whose_requests_were_lost_hears_of_it(server, one_poll):
    with server.client() as client:
        sampler = client.create_sampling_client(base_model=LLAMA).result()
        target = {"type": SESSION, "sampling_session_id": sampler._sampling_session_id}
        told = post(server, "retrieve_futures", {"target": target, "prev_cursor": 0})
        assert told.status_code == 410
        assert "since this server started" in told.json()["detail"]
        acknowledging = {"target": target, "prev_cursor": 7, "timeout": 0, "retrieved_request_ids": ["x"]}
        assert post(server, "retrieve_futures", acknowledging).json() == {"completions": [], "cursor": 7}


def test_a_cursor_covers_what_was_seen_and_retrieved_results_go(server, service_client):
    sampler = service_client.create_sampling_client(base_model=LLAMA).result()
    answers([ask(sampler, 5), ask(sampler, 6)])
    target = {"type": SESSION, "sampling_session_id": sampler._sampling_session_id, "cloned_sampler_id": 0}
    first = post(server, "retrieve_futures", {"target": target}).json()
    assert [each["state"] for each in first["completions"]] == ["finished", "finished"]
    assert post(server, "retrieve_futures", {"target": target, "prev_cursor": 0}).json() == first  # a lost answer
    ids = [each["request_id"] for each in first["completions"]]
    waiting = {"target": target, "prev_cursor": first["cursor"], "timeout": 0.01, "retrieved_request_ids": ids[:1]}
    assert post(server, "retrieve_futures", waiting).json() == {"completions": [], "cursor": first["cursor"]}
    assert post(server, "retrieve_future", {"request_id": ids[0]}).status_code == 410
    assert post(server, "retrieve_future", {"request_id": ids[1]}).status_code == 200
    other = {"type": "model", "sampling_session_id": "x"}
    assert "sampling sessions only" in post(server, "retrieve_futures", {"target": other}).json()["detail"]


def test_clones_get_numbers_of_their_own_from_the_server(server, service_client, one_poll):
    sampler = service_client.create_sampling_client(base_model=LLAMA).result()
    expected = answers([ask(sampler, 5)])
    handle = sampler.get_sampler_handle()
    clones = [tinker.SamplingClient.from_sampler_handle(handle, api_key="tml-test") for _ in range(3)]
    assert [answers([ask(clone, 5)]) for clone in clones] == [expected] * 3
    assert sorted(clone._cloned_sampler_id for clone in clones) == [1, 2, 3]
    gone = post(server, "join_sampling_session", {"sampling_session_id": "none"})
    assert gone.status_code == 410
