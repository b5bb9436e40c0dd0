"""Checkpoints of three types, and what comes back from them."""

import pytest
from support import TINY, adam, logprobs_of, sentence

from weaver import WeaverAPIError, types

LORA = types.LoraConfig(rank=8, seed=11)
DATA = [sentence([5, 6, 7, 8, 9, 10]), sentence([20, 21, 22])]


@pytest.fixture
def client(service):
    return service.create_training_client(base_model=TINY, lora_config=LORA)


def loss(client):
    return client.forward(DATA, "cross_entropy")["result"]["metrics"]["loss"]


def step(client, rate=0.02):
    client.forward_backward(DATA, "cross_entropy")
    return client.optim_step(adam(rate))


def test_a_loaded_state_has_the_loss_of_its_moment(client):
    step(client)
    saved_at = loss(client)
    kept = client.save_state(name="kept")
    assert (kept.name, kept.checkpoint_type, kept.status, kept.ttl_seconds) == ("kept", "weight", "completed", None)
    assert kept.path == f"weaver://{client.model_id}/checkpoints/kept"
    step(client)
    assert loss(client) != pytest.approx(saved_at, rel=1e-3)
    assert client.load_state(kept)["path"] == kept.path
    assert loss(client) == pytest.approx(saved_at, rel=1e-5)
    assert [found.id for found in client.list_checkpoints()] == [kept.id]


def test_with_the_optimizers_state_training_goes_on_as_if_it_had_never_stopped(client):
    for _ in range(3):
        step(client)
    kept = client.save_state(name="both", checkpoint_type="weight_and_optimizer")
    step(client)
    straight = loss(client)
    client.load_state_with_optimizer(kept.path)
    step(client)
    assert loss(client) == pytest.approx(straight, rel=1e-5)
    client.load_state(kept)
    step(client)
    assert loss(client) != pytest.approx(straight, rel=1e-5), "a new optimizer takes another step"


def test_a_checkpoint_of_weights_has_no_optimizers_state_to_load(client):
    kept = client.save_state(name="weights")
    with pytest.raises(WeaverAPIError, match="it holds no optimizer state") as refused:
        client.load_state_with_optimizer(kept)
    assert (refused.value.status_code, refused.value.code, refused.value.retryable) == (400, "invalid_request", False)


def test_a_step_of_rate_0_uses_the_gradients_up_and_changes_nothing(client):
    before = loss(client)
    client.forward_backward(DATA, "cross_entropy")
    assert client.optim_step(adam(0.0))["metrics"]["grad_norm"] > 0
    assert loss(client) == pytest.approx(before, rel=1e-6)
    assert client.optim_step(adam(0.0))["metrics"]["grad_norm"] == 0


def test_a_sampling_checkpoint_is_sampled_and_not_loaded(client, service):
    kept = client.save_state(name="drawn", checkpoint_type="sampling")
    assert kept.ttl_seconds == 3600
    sampler = service.get_sampling_client(kept.path, base_model=TINY, model_id=client.model_id)
    prompt = types.ModelInput.from_ints([5, 6])
    assert len(sampler.sample(prompt=prompt, sampling_params=types.SamplingParams(max_tokens=2))["sequences"]) == 1
    with pytest.raises(WeaverAPIError, match="is a checkpoint of type 'sampling'"):
        client.load_state(kept)
    state = client.save_state(name="state")
    with pytest.raises(WeaverAPIError, match="is a training state"):
        service.create_sampling_client(model_path=state.path, base_model=TINY)


def test_lifetimes_are_set_changed_and_lifted(client):
    kept = client.save_state(name="an-hour", ttl_seconds=7200)
    assert kept.ttl_seconds == 7200
    assert client.set_checkpoint_ttl(kept, 86_400)["ttl_seconds"] == pytest.approx(86_400, abs=60)
    assert client.set_checkpoint_ttl(kept.path, None)["ttl_seconds"] is None
    [found] = client.list_checkpoints()
    assert found.expires_at is None
    with pytest.raises(WeaverAPIError, match="ttl_seconds is 5; it must be from 3600"):
        client.set_checkpoint_ttl(kept, 5)


def test_a_name_is_taken_once_whatever_the_type(client):
    client.save_state(name="twice")
    client.forward(DATA, "cross_entropy")
    for save in (lambda: client.save_state(name="twice"), lambda: client.save_weights_for_sampler(name="twice")):
        with pytest.raises(WeaverAPIError, match="is there already") as refused:
            save()
        assert (refused.value.status_code, refused.value.code) == (409, "name_taken")
    assert len(client.list_checkpoints()) == 1


def test_a_snapshot_of_the_sampler_never_changes(client, service):
    path = client.save_weights_for_sampler(name="first", ttl_seconds=None)
    prompt = types.ModelInput.from_ints([5, 6, 7, 8])
    before = service.create_sampling_client(model_path=path).compute_logprobs(prompt=prompt)
    for _ in range(3):
        step(client)
    newer = client.save_weights_and_get_sampling_client()
    assert newer.compute_logprobs(prompt=prompt)[1:] != pytest.approx(before[1:], abs=1e-3)
    again = service.create_sampling_client(model_path=path, model_id=client.model_id)
    assert again.compute_logprobs(prompt=prompt) == before


def test_handles_are_waited_for_together_and_tell_what_they_are(client):
    passed = client.forward_backward(DATA, "cross_entropy", wait=False)
    stepped = client.optim_step(adam(0.01), wait=False)
    saved = client.save_state(name="handled", wait=False)
    results = type(passed).wait_all([passed, stepped, saved])
    assert len(logprobs_of(results[0])) == len(DATA)
    assert results[2]["path"].endswith("/checkpoints/handled")
    assert (passed.status, passed.done(), passed.error, passed.pending_info) == ("done", True, None, None)
    assert passed.refresh()["response"] == passed.response == passed.wait()["response"] == results[0]
    for handle in (
        client.load_state(results[2]["path"], wait=False), client.save_weights_for_sampler(wait=False),
        client.load_state(results[2]["path"], wait=False), client.save_weights_and_get_sampling_client(wait=False),
    ):  # fmt: skip
        assert handle.result()


def test_a_terminated_model_is_gone_and_its_checkpoints_stay(client, service):
    kept = client.save_state(name="left")
    assert client.terminate(["inference"])["inference"]["status"] == "shared"
    step(client)
    assert client.terminate()["trainer"] == {"status": "terminated"}
    assert client.terminate()["trainer"] == {"status": "terminated"}
    with pytest.raises(WeaverAPIError, match="is not in memory any more") as refused:
        step(client)
    assert refused.value.status_code == 404
    assert [found.id for found in client.list_checkpoints()] == [kept.id]
    assert service.get_model(client.model_id)["status"] == "terminated"
    heir = service.create_model(base_model=TINY, lora_config=LORA)
    heir.load_state(kept)
