"""Sessions through the vendor's clients: lists, searches, projects, and the end of those nobody hears from."""

import warnings
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
import tinker
from tinker.types import (
    AccessibleSearchOwner,
    ActiveSessionStatusQuery,
    ClientFinishedSessionStatusQuery,
    SessionSearchRequest,
    UserSearchOwner,
)

from weaver.domain import AdamParams, LoraSpec, OptimStep

LLAMA = "tiny/llama"
PROMPT = tinker.ModelInput.from_ints([5, 6, 7, 8])
LEASE = 3600


@pytest.fixture
def rest(timed):
    return timed.rest()


def session_of(training_client):
    return training_client.model_id.partition(":")[0]


def run_in(client):
    return client.create_lora_training_client(LLAMA, rank=4).result()


def made(timed, **details):
    """A session without a client that would keep it alive; its id."""
    timed.clock.pass_by(1)
    return timed.service.create_session(**({"user_metadata": {}} | details))


def search(rest, **wanted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rest.search_sessions(SessionSearchRequest(**wanted)).result()


def found(rest, **wanted):
    return [one.session_id for one in search(rest, **wanted).sessions]


def test_a_session_lists_its_runs_its_samplers_and_what_it_was_called(timed, rest):
    with timed.client(display_name="Nightly", user_metadata={"who": "ada"}) as client:
        run = run_in(client)
        run_in(client)
        sampler = client.create_sampling_client(base_model=LLAMA).result()
        info = rest.get_session(session_of(run), access_scope="accessible").result()
        assert info.training_run_ids == [f"{session_of(run)}:train:{number}" for number in (0, 1)]
        assert (info.display_name, info.user_metadata) == ("Nightly", {"who": "ada"})
        (sampler_id,) = info.sampler_ids
        described = rest.get_sampler(sampler_id).result()
        assert (described.sampler_id, described.base_model) == (sampler_id, sampler.get_base_model())
    assert rest.get_session(session_of(run)).result() == info


def test_sessions_are_listed_newest_first(timed, rest):
    ids = [made(timed) for _ in range(3)]
    assert rest.list_sessions(limit=2).result().sessions == ids[:0:-1]
    assert rest.list_sessions(offset=2, access_scope="accessible").result().sessions == ids[:1]


def test_an_unknown_session_is_said_to_be_unknown(rest):
    for ask in (lambda: rest.get_session("nobody"), lambda: rest.assign_session_project("nobody", "p")):
        with pytest.raises(tinker.NotFoundError, match="there is no session 'nobody' here"):
            ask().result()


def test_a_session_moves_between_projects_with_its_runs(timed, rest):
    with timed.client(project_id="reading") as client:
        run = run_in(client)
        rest.assign_session_project(session_of(run), "writing").result()
        assert rest.list_training_runs(project_id="reading").result().training_runs == []
        (moved,) = rest.list_training_runs(project_id="writing").result().training_runs
        assert moved.training_run_id == run.model_id
        with pytest.raises(tinker.BadRequestError, match="project_id is empty"):
            rest.assign_session_project(session_of(run), "").result()


def test_a_search_finds_what_holds_of_all_that_it_says(timed, rest):
    plain = made(timed)
    nightly = made(timed, display_name="Nightly run", project_id="reading", user_metadata={"a": "1", "b": "2"})
    weekly = made(timed, display_name="Weekly run", project_id="writing", user_metadata={"a": "1"})
    assert found(rest) == [weekly, nightly, plain]
    assert found(rest, display_name="RUN") == [weekly, nightly]
    assert found(rest, display_name="run night") == [nightly]
    assert found(rest, display_name="weekly", session_id=plain) == [weekly, plain]
    assert found(rest, session_id=nightly) == [nightly]
    assert found(rest, user_metadata={"a": "1"}) == [weekly, nightly]
    assert found(rest, user_metadata={"a": "1", "b": "2"}) == [nightly]
    assert found(rest, project_ids=["writing", "none"]) == [weekly]
    assert found(rest, user_metadata={"a": "1"}, project_ids=["reading"]) == [nightly]
    assert found(rest, owner=AccessibleSearchOwner()) == [weekly, nightly, plain]
    assert found(rest, owner=UserSearchOwner(owner_urns=["somebody"])) == []
    assert found(rest, owner=UserSearchOwner(owner_urns=["local"])) == [weekly, nightly, plain]


def test_a_search_goes_on_where_its_last_page_ended(timed, rest):
    ids = [timed.service.create_session(user_metadata={}) for _ in range(5)]  # all of one moment
    pages, cursor = [], None
    while not pages or cursor:
        page = search(rest, limit=2, cursor=cursor)
        pages.append([one.session_id for one in page.sessions])
        cursor = page.next_cursor
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [session_id for page in pages for session_id in page] == sorted(ids, reverse=True)


def test_a_search_tells_how_each_session_ended_and_what_it_keeps(timed, rest):
    with timed.client(project_id="reading") as client:
        run = run_in(client)
        run.save_state("a").result()
        run.save_weights_for_sampler("a").result()
        (active,) = search(rest, session_id=session_of(run)).sessions
        assert (active.status.type, active.owner, active.project_id) == ("active", "local", "reading")
        assert active.created_at == datetime.fromtimestamp(timed.clock.now, UTC)
        assert active.checkpoints_count == 2
        sizes = [one.size_bytes for one in rest.list_user_checkpoints().result().checkpoints]
        assert active.checkpoint_storage_bytes == sum(sizes)
        client.close("errored", "the disk: full").result()
    (ended,) = search(rest).sessions
    assert (ended.status.type, ended.status.reason.type, ended.status.detail) == (
        "client_finished", "errored", "the disk: full",
    )  # fmt: skip
    assert found(rest, statuses=[ActiveSessionStatusQuery()]) == []
    assert len(found(rest, statuses=[ClientFinishedSessionStatusQuery()])) == 1
    assert found(rest, statuses=[ClientFinishedSessionStatusQuery(reasons=["success"])]) == []


# Leases


def test_a_session_nobody_hears_from_ends_and_frees_its_models_and_nameless_snapshots(timed, rest):
    with timed.client() as client:
        run = run_in(client)
        kept = run.save_state("kept").result().path
        sampler = run.save_weights_and_get_sampling_client().result()
        snapshots = timed.data_dir / "snapshots" / session_of(run)
        assert snapshots.exists()
        timed.ticks.pass_by(LEASE)
        timed.service.tidy()
        assert not snapshots.exists()
        with pytest.raises(tinker.NotFoundError, match="its session ended or the server was restarted"):
            run.optim_step(tinker.AdamParams()).result()
        with pytest.raises(tinker.APIStatusError, match="or its session has ended"):
            sampler.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=1)).result(timeout=60)
        (ended,) = search(rest).sessions
        assert ended.status is None
    with timed.client() as client:
        assert client.create_training_client_from_state(kept).result().get_info().lora_rank == 4


def ended(timed, session_id):
    timed.service.tidy()
    return timed.service.sessions.info(session_id).ended


@pytest.mark.parametrize("sign", ["heartbeat", "sample", "operation"])
def test_every_sign_of_life_renews_the_lease(timed, sign):
    session_id = made(timed)
    service = timed.service
    ticket = service.create_model(session_id, 0, LLAMA, LoraSpec(rank=2))
    sampler = service.create_sampling_session(session_id, 0, base_model=LLAMA)
    for number in range(1, 4):
        timed.ticks.pass_by(LEASE - 1)
        match sign:
            case "heartbeat":
                url, headers = f"{timed.url}/api/v1/session_heartbeat", {"X-API-Key": "tml-test"}
                assert httpx.post(url, json={"session_id": session_id}, headers=headers).status_code == 200
            case "sample":
                service.future(
                    service.sample(sampler, number, prompt=np.array([5, 6, 7]), max_tokens=1).request_id
                ).result(60)
            case "operation":
                service.submit(ticket.model_id, number, OptimStep(AdamParams(learning_rate=0.0)))
        assert ended(timed, session_id) is None
    timed.ticks.pass_by(LEASE)
    assert ended(timed, session_id) == "expired"


def test_a_heartbeat_of_an_ended_session_tells_its_client_to_stop(timed):
    session_id = made(timed)
    timed.ticks.pass_by(LEASE)
    timed.service.tidy()
    url, headers = f"{timed.url}/api/v1/session_heartbeat", {"X-API-Key": "tml-test"}
    assert httpx.post(url, json={"session_id": session_id}, headers=headers).status_code == 410


def test_a_restart_gives_every_session_a_new_lease(timed):
    session_id = made(timed)
    timed.ticks.pass_by(LEASE - 1)
    timed.stop()
    timed.start()
    timed.ticks.pass_by(LEASE - 1)
    assert ended(timed, session_id) is None
    timed.ticks.pass_by(1)
    assert ended(timed, session_id) == "expired"
