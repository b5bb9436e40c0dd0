"""Runs and checkpoints through the vendor's RestClient: lists, marks, lifetimes, copies and deletion."""

from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
import tinker
from safetensors.numpy import load_file

LLAMA = "tiny/llama"
PROMPT = tinker.ModelInput.from_ints([5, 6, 7, 8])
HOUR, DAY = 3600, 86_400


@pytest.fixture
def rest(timed):
    return timed.rest()


@pytest.fixture
def project(timed):
    """A session in a project."""
    with timed.client(project_id="reading", user_metadata={"who": "ada"}) as client:
        yield client


def run_in(client, **options):
    return client.create_lora_training_client(LLAMA, rank=4, **options).result()


def saved(timed, run, *names, **options):
    """States of these names, a second apart; their paths."""
    paths = []
    for name in names:
        timed.clock.pass_by(1)
        paths.append(run.save_state(name, **options).result().path)
    return paths


def iso(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def paths(response):
    return [one.tinker_path for one in response.checkpoints]


def logprobs(sampler):
    return sampler.compute_logprobs(PROMPT).result(timeout=60)


# Training runs


def test_a_training_run_says_what_it_is_and_what_it_has_saved(timed, rest, project):
    run = run_in(project, user_metadata={"try": "1"})
    before = rest.get_training_run(run.model_id).result()
    assert (before.last_checkpoint, before.last_sampler_checkpoint) == (None, None)
    old, new = saved(timed, run, "old", "new", user_metadata={"loss": "low"})
    sampler = run.save_weights_for_sampler("snapshot", ttl_seconds=HOUR).result().path
    found = rest.get_training_run(run.model_id, access_scope="accessible").result()
    assert (found.training_run_id, found.base_model, found.lora_rank) == (run.model_id, LLAMA, 4)
    assert (found.is_lora, found.corrupted, found.model_owner) == (True, False, "local")
    assert found.user_metadata == {"try": "1"}
    assert found.last_request_time == iso(timed.clock.now)
    last = found.last_checkpoint
    assert (last.tinker_path, last.checkpoint_id, last.checkpoint_type) == (new, "weights/new", "training")
    assert (last.time, last.expires_at, last.public) == (iso(timed.clock.now), None, False)
    assert last.user_metadata == {"loss": "low"}
    assert last.size_bytes == sum(file.stat().st_size for file in timed.folder(new).iterdir())
    assert found.last_sampler_checkpoint.tinker_path == sampler
    assert found.last_sampler_checkpoint.expires_at == iso(timed.clock.now + HOUR)
    assert rest.get_training_run_by_tinker_path(old).result() == found


def test_runs_are_listed_newest_first_in_pages_and_by_project(timed, rest, project):
    made = []
    with timed.client(project_id="writing") as other:
        for client in (project, other, project):
            timed.clock.pass_by(1)
            made.append(run_in(client).model_id)
    first = rest.list_training_runs(limit=2).result()
    assert [run.training_run_id for run in first.training_runs] == made[:0:-1]
    assert (first.cursor.offset, first.cursor.limit, first.cursor.total_count) == (0, 2, 3)
    rest_of_them = rest.list_training_runs(limit=2, offset=2).result()
    assert [run.training_run_id for run in rest_of_them.training_runs] == made[:1]
    mine = rest.list_training_runs(project_id="reading", access_scope="accessible").result()
    assert [run.training_run_id for run in mine.training_runs] == [made[2], made[0]]
    assert mine.cursor.total_count == 2
    assert rest.list_training_runs(project_id="none").result().training_runs == []


def test_when_a_run_was_last_asked_for_something_outlives_a_restart(timed, project):
    run = run_in(project)
    timed.clock.pass_by(100)
    run.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
    asked = iso(timed.clock.now)
    project.close("success")
    timed.stop()
    timed.clock.pass_by(DAY)
    timed.start()
    assert timed.rest().get_training_run(run.model_id).result().last_request_time == asked


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", "query.limit: Input should be greater than or equal to 1"),
        ("limit=1001", "query.limit: Input should be less than or equal to 1000"),
        ("offset=-1", "query.offset: Input should be greater than or equal to 0"),
        ("access_scope=all", "query.access_scope: Input should be 'owned' or 'accessible'"),
    ],
)
def test_a_page_that_does_not_exist_is_refused_by_name(timed, query, sentence):
    answer = httpx.get(f"{timed.url}/api/v1/training_runs?{query}", headers={"X-API-Key": "tml-test"})
    assert (answer.status_code, answer.json()) == (400, {"detail": sentence})


def test_an_unknown_run_is_said_to_be_unknown(rest):
    for ask in (rest.get_training_run, rest.list_checkpoints):
        with pytest.raises(tinker.NotFoundError, match="there is no training run 'nobody:train:0' here"):
            ask("nobody:train:0").result()


# Checkpoints


def test_checkpoints_are_listed_newest_first_of_one_run_and_of_all(timed, rest, project):
    first, second = run_in(project), run_in(project)
    old, new = saved(timed, first, "old", "new")
    (other,) = saved(timed, second, "other")
    assert paths(rest.list_checkpoints(first.model_id).result()) == [new, old]
    assert paths(rest.list_user_checkpoints().result()) == [other, new, old]
    page = rest.list_user_checkpoints(limit=1, offset=1).result()
    assert paths(page) == [new]
    assert (page.cursor.offset, page.cursor.limit, page.cursor.total_count) == (1, 1, 3)


def test_weights_info_tells_what_a_checkpoint_was_trained_with(rest, project):
    run = run_in(project, train_mlp=False)
    for path in (run.save_state("a").result().path, run.save_weights_for_sampler("a").result().path):
        info = rest.get_weights_info_by_tinker_path(path).result()
        assert (info.base_model, info.is_lora, info.lora_rank) == (LLAMA, True, 4)
        assert (info.train_mlp, info.train_attn, info.train_unembed) == (False, True, True)
        assert info.optimizer_config.type == "adamw"


def test_publishing_marks_a_checkpoint_and_can_be_repeated_and_undone(rest, project):
    run = run_in(project)
    path = run.save_state("a").result().path

    def public():
        return rest.list_checkpoints(run.model_id).result().checkpoints[0].public

    for _ in range(2):
        rest.publish_checkpoint_from_tinker_path(path).result()
        assert public()
    for _ in range(2):
        rest.unpublish_checkpoint_from_tinker_path(path).result()
        assert not public()


def test_what_replaces_a_published_checkpoint_is_not_public(rest, project):
    run = run_in(project)
    rest.publish_checkpoint_from_tinker_path(run.save_state("a").result().path).result()
    run.save_state("a", overwrite=True).result()
    assert not rest.list_checkpoints(run.model_id).result().checkpoints[0].public


def test_a_lifetime_is_counted_from_when_it_is_set_and_can_be_lifted(timed, rest, project):
    run = run_in(project)
    path = run.save_state("a").result().path
    timed.clock.pass_by(DAY)
    rest.set_checkpoint_ttl_from_tinker_path(path, HOUR).result()
    (found,) = rest.list_checkpoints(run.model_id).result().checkpoints
    assert found.expires_at - iso(timed.clock.now) == timedelta(hours=1)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    (found,) = rest.list_checkpoints(run.model_id).result().checkpoints
    assert found.expires_at is None


@pytest.mark.parametrize("seconds", [0, HOUR - 1, 10 * 365 * DAY + 1])
def test_a_lifetime_out_of_range_is_refused(rest, project, seconds):
    path = run_in(project).save_state("a").result().path
    with pytest.raises(tinker.BadRequestError, match=f"ttl_seconds is {seconds}; it must be from 3600"):
        rest.set_checkpoint_ttl_from_tinker_path(path, seconds).result()


def test_a_lifetime_that_was_forgotten_does_not_mean_for_ever(timed, project):
    path = run_in(project).save_state("a", ttl_seconds=HOUR).result().path
    run, kind, name = path.removeprefix("tinker://").split("/")
    url = f"{timed.url}/api/v1/training_runs/{run}/checkpoints/{kind}/{name}/ttl"
    answer = httpx.put(url, json={}, headers={"X-API-Key": "tml-test"})
    assert answer.status_code == 400
    assert "ttl_seconds is missing" in answer.json()["detail"]


def test_an_expired_checkpoint_is_neither_listed_nor_loaded_and_its_files_go(timed, rest, project):
    run = run_in(project)
    short = run.save_state("short", ttl_seconds=HOUR).result().path
    long = run.save_state("long", ttl_seconds=2 * HOUR).result().path
    folder = timed.folder(short)
    timed.clock.pass_by(HOUR - 1)
    assert paths(rest.list_checkpoints(run.model_id).result()) == [long, short]
    timed.clock.pass_by(1)
    assert paths(rest.list_checkpoints(run.model_id).result()) == [long]
    assert rest.get_training_run(run.model_id).result().last_checkpoint.tinker_path == long
    with pytest.raises(tinker.NotFoundError, match=r"there is no checkpoint .*short', or it has expired"):
        project.create_training_client_from_state(short).result()
    assert folder.exists()
    timed.service.tidy()
    assert not folder.exists()


def test_what_expired_while_no_server_ran_is_swept_by_the_next(timed, project):
    folder = timed.folder(run_in(project).save_state("a", ttl_seconds=HOUR).result().path)
    project.close("success")
    timed.stop()
    timed.clock.pass_by(HOUR)
    assert folder.exists()
    timed.start()
    assert not folder.exists()


def test_a_deleted_checkpoint_is_gone_with_its_files_and_its_name_is_free(timed, rest, project):
    run = run_in(project)
    a, _ = saved(timed, run, "a", "b")
    folder = timed.folder(a)
    rest.delete_checkpoint_from_tinker_path(a).result()
    rest.delete_checkpoint(run.model_id, "weights/b").result()
    assert rest.list_checkpoints(run.model_id).result().checkpoints == []
    assert not folder.exists()
    with pytest.raises(tinker.NotFoundError, match="there is no checkpoint"):
        rest.delete_checkpoint_from_tinker_path(a).result()
    assert run.save_state("a").result().path == a


def test_a_session_goes_on_sampling_from_a_deleted_snapshot_and_its_files_go_when_it_ends(timed, rest, project):
    run = run_in(project)
    path = run.save_weights_for_sampler("a").result().path
    folder = timed.folder(path)
    with timed.client() as other:
        sampler = other.create_sampling_client(model_path=path).result()
        expected = logprobs(sampler)
        rest.delete_checkpoint_from_tinker_path(path).result()
        assert logprobs(sampler) == expected
        with pytest.raises(tinker.NotFoundError, match="there is no checkpoint"):
            project.create_sampling_client(model_path=path).result()
        assert folder.exists()
    assert not folder.exists()


def test_a_session_that_has_not_sampled_yet_can_still_begin_after_the_deletion(timed, rest, project):
    path = run_in(project).save_weights_for_sampler("a").result().path
    sampler = project.create_sampling_client(model_path=path).result()
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert len(logprobs(sampler)) == 4


# Copies


def test_a_copy_is_a_checkpoint_of_its_own_that_outlives_its_source(timed, rest, project):
    run = run_in(project)
    source = run.save_state("a", user_metadata={"k": "v"}, ttl_seconds=HOUR).result().path
    expected = timed.tensors(source)
    copied = rest.copy_weights(source, "writing", ttl_seconds=2 * HOUR).result()
    model_id = copied.removeprefix("tinker://").split("/")[0]
    assert copied == f"tinker://{model_id}/weights/a"
    assert model_id != run.model_id
    (found,) = rest.list_checkpoints(model_id).result().checkpoints
    assert found.user_metadata == {"k": "v"}
    assert found.expires_at == iso(timed.clock.now + 2 * HOUR)
    listed = rest.list_training_runs(project_id="writing").result().training_runs
    assert [one.training_run_id for one in listed] == [model_id]
    rest.delete_checkpoint_from_tinker_path(source).result()
    resumed = project.create_training_client_from_state_with_optimizer(copied).result()
    now = timed.tensors(resumed.save_state("now").result().path)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(now[name], tensor)


def test_a_copy_does_not_change_with_its_source(timed, rest, project, data):
    run = run_in(project)
    source = run.save_state("a").result().path
    copied = rest.copy_weights(source, "writing").result()
    before = timed.tensors(copied)
    run.forward_backward(data.supervised(9), "cross_entropy")
    run.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    run.save_state("a", overwrite=True).result()
    after = load_file(timed.folder(source) / "adapter_model.safetensors")
    assert any(not np.array_equal(after[name], tensor) for name, tensor in before.items())
    for name, tensor in timed.tensors(copied).items():
        np.testing.assert_array_equal(before[name], tensor)


def test_a_service_client_copies_a_snapshot_into_its_own_project_and_samples_from_it(rest, project):
    path = run_in(project).save_weights_for_sampler("a").result().path
    copied = project.copy_weights(path).result()
    assert copied.endswith("/sampler_weights/a")
    assert logprobs(project.create_sampling_client(model_path=copied).result()) == logprobs(
        project.create_sampling_client(model_path=path).result()
    )


def test_a_repeated_copy_is_one_copy(timed, project):
    path = run_in(project).save_state("a").result().path
    body, headers = {"source_path": path}, {"X-API-Key": "tml-test", "X-Idempotency-Key": "once"}
    url = f"{timed.url}/api/v1/copy_weights"
    first, again = (httpx.post(url, json=body, headers=headers).json()["tinker_path"] for _ in range(2))
    other = httpx.post(url, json=body, headers=headers | {"X-Idempotency-Key": "twice"}).json()["tinker_path"]
    assert first == again != other


def test_a_copy_into_a_session_takes_the_given_number(timed, project, rest):
    run = run_in(project)
    path, session = run.save_state("a").result().path, run.model_id.partition(":")[0]
    url, headers = f"{timed.url}/api/v1/copy_weights", {"X-API-Key": "tml-test"}
    body = {"source_path": path, "session_id": session, "model_seq_id": 7}
    assert httpx.post(url, json=body, headers=headers).json() == {
        "tinker_path": f"tinker://{session}:train:7/weights/a"
    }
    taken = httpx.post(url, json=body | {"model_seq_id": 0}, headers=headers)
    assert taken.status_code == 400
    assert "is there already" in taken.json()["detail"]
    half = httpx.post(url, json={"source_path": path, "session_id": session}, headers=headers)
    assert "belong together" in half.json()["detail"]


def test_a_copy_with_a_token_for_weights_is_refused_by_name(rest, project):
    path = run_in(project).save_state("a").result().path
    with pytest.raises(tinker.BadRequestError, match="weights_access_token must be absent"):
        rest.copy_weights(path, "writing", weights_access_token="secret").result()
