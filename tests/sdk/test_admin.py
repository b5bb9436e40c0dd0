"""What was used and done, through the vendor's AdminClient, and a session's trace."""

import json
import urllib.request
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError

import pytest
import tinker

LLAMA = "tiny/llama"
HOUR = 3600


@pytest.fixture
def admin(timed):
    return timed.admin()


@pytest.fixture
def client(timed):
    with timed.client(project_id="reading", user_metadata={"who": "ada"}) as opened:
        yield opened


def hour(timed, later=0):
    """The full hour of this moment, or one some hours later."""
    return datetime.fromtimestamp(timed.clock.now // HOUR * HOUR + later * HOUR, UTC)


def used(admin, start, end):
    """What was used, by hour and kind."""
    data = admin.get_billing_usage(start, end).result().data
    return {(one.bucket_start, one.event_info.type, getattr(one.event_info, "cached", None)): one for one in data}


def read(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


def test_every_token_that_was_trained_on_drawn_or_read_is_counted_once(timed, client, admin, data):
    run = client.create_lora_training_client(LLAMA, rank=4).result()
    run.forward_backward(data.supervised(9, 5), "cross_entropy").result()
    run.forward(data.supervised(7), "cross_entropy").result()
    run.save_state("a").result()
    sampler = run.save_weights_and_get_sampling_client().result()
    timed.clock.pass_by(HOUR)
    params = tinker.SamplingParams(max_tokens=6, stop=[])
    drawn = sampler.sample(tinker.ModelInput.from_ints([5, 6, 7, 8]), 3, params).result(timeout=60)
    with pytest.raises(tinker.BadRequestError):
        run.forward_backward(data.supervised(1000), "cross_entropy").result()
    response = admin.get_billing_usage(hour(timed, -1), hour(timed, 1)).result()
    found = used(admin, hour(timed, -1), hour(timed, 1))
    first, second = hour(timed, -1), hour(timed)
    cached = drawn.prompt_cache_hit_tokens
    counts = {key: getattr(one.event_info, "token_count", None) for key, one in found.items()}
    expected = {
        (first, "training", None): 9 + 5 + 7,
        (first, "checkpoint", None): None,
        (second, "sampling_sample", None): 18,
        (second, "sampling_prefill", False): 4 - cached,
        (second, "sampling_prefill", True): cached,
    }
    assert counts == {key: count for key, count in expected.items() if count != 0}
    assert found[first, "checkpoint", None].event_info.count == 1
    session_id = run.model_id.partition(":")[0]
    for one in found.values():
        assert (one.base_model, one.session_id, one.project_id) == (LLAMA, session_id, "reading")
        assert one.estimated_cost_usd in (0, None)
    assert response.sessions[session_id].user_metadata == {"who": "ada"}
    assert [one.bucket_start for one in response.data] == sorted(one.bucket_start for one in response.data)


def test_counts_outlive_a_restart_and_are_added_to(timed, data):
    def train():
        with timed.client() as client:
            run = client.create_lora_training_client(LLAMA, rank=4).result()
            run.forward(data.supervised(7), "cross_entropy").result()

    train()
    timed.stop()
    timed.start()
    train()
    events = timed.admin().get_billing_usage(hour(timed), hour(timed, 1)).result().data
    assert [one.event_info.token_count for one in events if one.event_info.type == "training"] == [7, 7]


@pytest.mark.parametrize(
    ("start", "end", "sentence"),
    [
        (0.5, 2, "starting_on is .*; it must be a full hour of UTC"),
        (1, 2, "which is still to come"),
        (0, 0, "ending_before must be after starting_on, by 14 days at most"),
        (-1, 14 * 24, "ending_before must be after starting_on, by 14 days at most"),
    ],
)
def test_a_window_that_cannot_be_answered_is_refused_by_name(timed, admin, start, end, sentence):
    with pytest.raises(tinker.BadRequestError, match=sentence):
        admin.get_billing_usage(hour(timed, start), hour(timed, end)).result()


def test_what_checkpoints_take_is_told_for_each_project(timed, client, admin):
    run = client.create_lora_training_client(LLAMA, rank=4).result()
    run.save_state("a").result()
    run.save_state("gone", ttl_seconds=HOUR).result()
    with timed.client() as other:
        other.create_lora_training_client(LLAMA, rank=4).result().save_state("b").result()
    timed.clock.pass_by(HOUR)
    found = {one.project_id: one for one in admin.get_current_checkpoint_storage_usage().result().data}
    assert {project: one.checkpoint_count for project, one in found.items()} == {"reading": 1, None: 1}
    size = next(iter(timed.rest().list_checkpoints(run.model_id).result().checkpoints)).size_bytes
    assert (found["reading"].size_bytes, found["reading"].size_gigabytes) == (size, size / 1e9)
    (mine,) = admin.get_current_checkpoint_storage_usage(project_id="reading").result().data
    assert (mine.project_id, mine.estimated_monthly_cost_usd) == ("reading", 0)
    assert admin.get_current_checkpoint_storage_usage(project_id="none").result().data == []


def test_the_audit_log_has_what_was_done_to_checkpoints_and_projects_day_by_day(timed, client, admin):
    rest = timed.rest()
    run = client.create_lora_training_client(LLAMA, rank=4).result()
    path = run.save_state("a").result().path
    rest.publish_checkpoint_from_tinker_path(path).result()
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    rest.set_checkpoint_ttl_from_tinker_path(path, HOUR).result()
    copied = rest.copy_weights(path, "writing").result()
    rest.assign_session_project(run.model_id.partition(":")[0], "writing").result()
    day = datetime.fromtimestamp(timed.clock.now, UTC).date()
    timed.clock.pass_by(86_400)
    rest.delete_checkpoint_from_tinker_path(copied).result()
    (today,) = admin.get_audit_log().result().entries
    assert (today.event, today.tinker_path) == ("checkpoint_delete", copied)
    assert today.timestamp == datetime.fromtimestamp(timed.clock.now, UTC)
    before = admin.get_audit_log(day=day).result().entries
    done = ["checkpoint_publish", "checkpoint_unpublish", "checkpoint_set_ttl", "checkpoint_copy"]
    assert [one.event for one in before] == [*done, "project_assign_session"]
    assert before[2].event_details["ttl_seconds"] == HOUR
    assert {one.model_id for one in before[:4]} == {run.model_id}
    (project,) = admin.get_audit_log("projects", day=day).result().entries
    assert (project.event_details["from"], project.event_details["project_id"]) == ("reading", "writing")
    assert len(admin.get_audit_log("checkpoints", day=day).result().entries) == 4
    assert admin.get_audit_log("teams", day=day + timedelta(days=1)).result().entries == []


def test_a_trace_has_every_operation_with_its_number_and_its_time(timed, client, data):
    run = client.create_lora_training_client(LLAMA, rank=4).result()
    run.forward_backward(data.supervised(5), "cross_entropy").result()
    began = timed.clock.now
    timed.clock.pass_by(3)
    run.optim_step(tinker.AdamParams(learning_rate=0.0)).result()
    run.save_state("a").result()
    with pytest.raises(tinker.RequestFailedError):
        run.save_state("a").result()
    url = timed.rest().export_session_trace(run.model_id.partition(":")[0]).result()
    events = read(url)["traceEvents"]
    assert [one["args"]["name"] for one in events if one["ph"] == "M"] == [run.model_id]
    spans = [one for one in events if one["ph"] == "X"]
    assert [(one["name"], one["args"]["seq_id"], one["args"]["succeeded"]) for one in spans] == [
        ("CreateModel", 0, True),
        ("ForwardBackward", 1, True),
        ("OptimStep", 2, True),
        ("SaveState", 3, True),
        ("SaveState", 4, False),
    ]
    assert spans[2]["ts"] - spans[1]["ts"] == 3e6
    assert spans[1]["ts"] == began * 1e6
    with pytest.raises(HTTPError) as refused:
        read(url.replace("signature=", "signature=0"))
    assert refused.value.code == 403
    with pytest.raises(tinker.NotFoundError, match="there is no session 'nobody' here"):
        timed.rest().export_session_trace("nobody").result()
