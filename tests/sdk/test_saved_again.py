"""A snapshot's name that is free again because the first one expired: whoever samples from the first goes on."""

import pytest
import tinker

LLAMA = "tiny/llama"
HOUR = 3600
PROMPT = tinker.ModelInput.from_ints([5, 6, 7, 8])


@pytest.fixture
def run(timed, data):
    with timed.client() as client:
        made = client.create_lora_training_client(LLAMA, rank=4, seed=3).result()
        made.forward_backward(data.supervised(9), "cross_entropy")
        made.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
        yield client, made


def scores(sampler):
    return sampler.compute_logprobs(PROMPT).result(timeout=60)[1:]


def test_a_sampler_of_an_expired_snapshot_outlives_a_new_one_of_the_same_name(timed, run):
    client, model = run
    path = model.save_weights_for_sampler("name", ttl_seconds=HOUR).result().path
    twin = model.save_weights_for_sampler("twin").result().path
    sampler = client.create_sampling_client(model_path=path).result()  # has not read its folder yet
    timed.clock.pass_by(HOUR)
    model.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    assert model.save_weights_for_sampler("name").result().path == path
    found = scores(sampler)
    assert found == scores(client.create_sampling_client(model_path=twin).result())
    assert found != scores(client.create_sampling_client(model_path=path).result())


def test_the_folder_of_the_expired_one_goes_with_its_last_sampler(timed, run):
    client, model = run
    path = model.save_weights_for_sampler("name", ttl_seconds=HOUR).result().path
    folder = timed.folder(path)
    scores(client.create_sampling_client(model_path=path).result())
    timed.clock.pass_by(HOUR)
    model.save_weights_for_sampler("name").result()
    timed.service.tidy()
    assert folder.exists()
    client.close("success").result()
    timed.service.tidy()
    assert not folder.exists()
    assert timed.folder(path).exists()


def test_a_state_that_is_overwritten_again_and_again_stays(timed, run):
    client, model = run
    paths = {model.save_state("rolling", overwrite=True).result().path for _ in range(4)}
    timed.service.tidy()
    [path] = paths
    assert client.create_training_client_from_state_with_optimizer(path).result().get_info().lora_rank == 4
    assert [folder.name.partition("~")[0] for folder in timed.folder(path).parent.iterdir()] == ["rolling"]
