"""What can stand in `model`: base models, snapshots, and runs, which mean their newest snapshot."""

import openai
import pytest
import tinker

from .conftest import MODEL, PLAIN, QUESTION

GREEDY = {"messages": [QUESTION], "temperature": 0, "max_tokens": 12}


@pytest.fixture
def student(trainer):
    return trainer.create_lora_training_client(MODEL, rank=8, seed=3).result()


def saved(student, name, token=9):
    """The path of a snapshot after some more training towards a token."""
    datum = tinker.Datum(
        tinker.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [token] * 3, "weights": [1.0, 1.0, 1.0]}
    )
    for _ in range(6):
        student.forward_backward([datum], "cross_entropy").result()
        student.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
    return student.save_weights_for_sampler(name).result().path


def said(client, model):
    answer = client.chat.completions.create(model=model, **GREEDY)
    return answer.nexrl_train["response_tokens"], answer.weight_version


def run_of(path):
    return path.split("/")[2]


def test_a_snapshot_is_sampled_from_and_not_its_base_model(client, trainer, student):
    path = saved(student, "first")
    tokens, version = said(client, path)
    sampler = trainer.create_sampling_client(model_path=path).result()
    base, base_version = said(client, MODEL)
    prompt = client.chat.completions.create(model=path, **GREEDY).nexrl_train["prompt_tokens"]
    params = tinker.SamplingParams(max_tokens=12, temperature=0.0)
    [expected] = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params).result().sequences
    assert tokens == list(expected.tokens) != base
    assert (version, base_version) == (path, MODEL)


def test_a_run_means_its_newest_snapshot_as_they_are_saved(client, student):
    first = saved(student, "one")
    run = run_of(first)
    tokens, version = said(client, run)
    assert (tokens, version) == said(client, first)
    second = saved(student, "two", token=20)
    assert said(client, run) == said(client, second)
    assert said(client, run)[1] == second
    assert said(client, first) == (tokens, first), "a snapshot never changes"
    assert said(client, second)[0] != tokens


def test_weavers_own_spelling_means_the_same(client, student):
    path = saved(student, "named")
    run = run_of(path).replace(":", "-")
    assert said(client, f"weaver://{run}/checkpoints/named") == said(client, path)
    assert said(client, run) == said(client, path)


def test_a_deployments_name_means_its_snapshot_until_it_is_stopped(client, service, student):
    path = saved(student, "offered")
    deployment = service.deployments.create(service.checkpoint_info(path), "my-model")
    assert said(client, "my-model") == (said(client, path)[0], deployment.snapshot)
    assert said(client, run_of(path))[1] == path
    assert {model.id for model in client.models.list().data} >= {"my-model", path}
    assert deployment.snapshot not in {model.id for model in client.models.list().data}
    service.deployments.stop(deployment.deployment_id)
    with pytest.raises(openai.NotFoundError, match="no deployment"):
        said(client, "my-model")
    assert "my-model" not in {model.id for model in client.models.list().data}


def test_a_run_that_has_saved_nothing_is_not_found(client, student):
    run = student.model_id
    with pytest.raises(openai.NotFoundError, match="has no sampler weights yet"):
        said(client, run)


def test_training_states_are_not_sampled_from(client, service, student):
    path = student.save_state("state").result().path
    before = service.sessions.page(1, 0).total
    with pytest.raises(openai.BadRequestError, match="is no snapshot to sample from") as refused:
        said(client, path)
    assert refused.value.param == "model"
    assert service.sessions.page(1, 0).total == before


def test_a_deleted_snapshot_is_not_found_and_the_run_goes_back_to_the_one_before(client, url, student):
    first = saved(student, "kept")
    second = saved(student, "deleted", token=20)
    run = run_of(first)
    assert said(client, run)[1] == second
    rest = tinker.RestClient(base_url=url, api_key="tml-any")
    rest.delete_checkpoint_from_tinker_path(second).result()
    with pytest.raises(openai.NotFoundError):
        said(client, second)
    assert said(client, run) == said(client, first)


def test_all_that_can_stand_in_model_is_listed(client, student):
    path = saved(student, "listed")
    found = {model.id: model for model in client.models.list().data}
    assert {MODEL, PLAIN, path, run_of(path)} <= found.keys()
    assert (found[MODEL].parent, found[path].parent, found[run_of(path)].parent) == (None, MODEL, MODEL)
    assert found[path].created > 1_700_000_000
    for model in (MODEL, path, run_of(path)):
        assert client.models.retrieve(model).id == model


def test_a_session_that_has_ended_is_replaced(client, service):
    before = said(client, MODEL)
    for info in service.sessions.page(1000, 0).items:
        if info.display_name == f"OpenAI endpoint: {MODEL}" and info.ended is None:
            service.finish_session(info.session_id, "success")
    assert said(client, MODEL) == before


def test_each_source_has_one_session(client, service):
    for _ in range(3):
        said(client, PLAIN)
    living = [info for info in service.sessions.page(1000, 0).items if info.ended is None]
    assert len([info for info in living if info.display_name == f"OpenAI endpoint: {PLAIN}"]) == 1
