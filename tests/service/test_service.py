"""The front door in process, with the echo plugins behind it: sessions, what they leave behind, and restarts."""

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.domain import AdamParams, LoraSpec, OptimStep, SaveForSampler, SaveState
from weaver.errors import Forgotten, InvalidInput, SequenceRefused, UnknownName
from weaver.service import Service

MODEL = "some/echo"
PROMPT = np.array([3, 4])


@pytest.fixture
def start(tmp_path):
    """A maker of services on one data directory; each is closed at the end at the latest."""
    started = []

    def make(**settings):
        source = ModelSource(MODEL, "echo:vocab=10,context=64")
        settings = {"backend": "echo", "sampler": "echo", "data_dir": tmp_path} | settings
        started.append(Service(Config(models=(source,), **settings)))
        return started[-1]

    yield make
    for service in started:
        service.close()


@pytest.fixture
def service(start):
    return start()


def session(service):
    return service.create_session(user_metadata={})


def result(service, ticket):
    return service.future(ticket.request_id).result(timeout=60)


def model(service, session_id, seq_id=0):
    ticket = service.create_model(session_id, seq_id, MODEL, LoraSpec(rank=2))
    result(service, ticket)
    return ticket.model_id


def snapshots(tmp_path):
    return sorted(str(folder.relative_to(tmp_path / "snapshots")) for folder in (tmp_path / "snapshots").glob("*/*"))


def test_an_ended_session_takes_its_nameless_snapshots_along_and_leaves_the_named(service, tmp_path):
    session_id = session(service)
    model_id = model(service, session_id)
    nameless = result(service, service.submit(model_id, 1, SaveForSampler()))
    named = result(service, service.submit(model_id, 2, SaveForSampler("kept")))
    assert len(snapshots(tmp_path)) == 1
    service.finish_session(session_id, "success")
    assert snapshots(tmp_path) == []
    with pytest.raises(Forgotten):
        service.sample(nameless.sampling_session_id, 0, prompt=PROMPT, max_tokens=1)
    assert service.checkpoint_info(named.path).name == "kept"


def test_a_snapshot_written_after_its_session_ended_is_removed_when_a_service_starts(start, tmp_path):
    """The save was queued when the session ended, and what a client has asked for still happens."""
    first = start()
    ended, live = session(first), session(first)
    ended_model, live_model = model(first, ended), model(first, live)
    kept = result(first, first.submit(live_model, 1, SaveForSampler()))
    late = first.submit(ended_model, 2, SaveForSampler())
    first.finish_session(ended, "success")
    assert snapshots(tmp_path) == [f"{live}/{kept.sampling_session_id.rpartition(':')[2]}"]
    first._base_models.engine(MODEL).refuse(ended_model, 1, InvalidInput("bad"))
    result(first, late)
    (tmp_path / "snapshots" / "unknown" / "x").mkdir(parents=True)
    assert len(snapshots(tmp_path)) == 3
    first.close()
    second = start()
    assert snapshots(tmp_path) == [f"{live}/{kept.sampling_session_id.rpartition(':')[2]}"]
    sampled = second.sample(kept.sampling_session_id, 0, prompt=PROMPT, max_tokens=2, stop_token_ids=())
    assert result(second, sampled).sequences[0].tokens.tolist() == [3, 4]


def test_a_repeated_end_changes_nothing(service):
    """The answer to the first one may have been lost, or the session's lease was over."""
    session_id = session(service)
    for reason in ("success", "errored"):
        service.finish_session(session_id, reason)
    assert service.sessions.info(session_id).ended == "success"


def test_an_ended_session_is_over_for_everything(service):
    session_id = session(service)
    model_id = model(service, session_id)
    service.finish_session(session_id, "success")
    for ask in (
        lambda: service.heartbeat(session_id),
        lambda: service.create_model(session_id, 1, MODEL, LoraSpec()),
        lambda: service.create_sampling_session(session_id, 0, base_model=MODEL),
    ):
        with pytest.raises(Forgotten, match="has ended"):
            ask()
    with pytest.raises(UnknownName, match=r"session ended .* Continue from a checkpoint"):
        service.submit(model_id, 1, OptimStep(AdamParams()))


def test_a_finished_sessions_work_is_done_and_its_results_can_be_fetched(start):
    service = start()
    session_id = session(service)
    model_id = model(service, session_id)
    tickets = [service.submit(model_id, number, SaveState(f"state-{number}")) for number in range(1, 6)]
    service.finish_session(session_id, "success")
    assert [result(service, ticket).path.rpartition("/")[2] for ticket in tickets] == [
        f"state-{n}" for n in range(1, 6)
    ]


def test_a_create_that_is_retried_after_a_restart_makes_the_model(start):
    """The first server wrote the row and died before its acknowledgement arrived."""
    first = start()
    session_id = session(first)
    model(first, session_id)
    first.close()
    second = start()
    model_id = model(second, session_id)
    assert result(second, second.submit(model_id, 1, OptimStep(AdamParams()))).metrics == {"grad_norm": 0.0}


def test_a_model_that_did_not_outlive_the_server_says_how_to_go_on(start):
    first = start()
    model_id = model(first, session(first))
    first.close()
    with pytest.raises(UnknownName, match=r"or the server was restarted. Continue from a checkpoint"):
        start().submit(model_id, 1, OptimStep(AdamParams()))


def test_a_number_that_never_arrives_is_given_up_and_refused_when_it_comes(start):
    service = start(gap_seconds=0.01)
    model_id = model(service, session(service))
    later = service.submit(model_id, 2, OptimStep(AdamParams()))
    assert result(service, later).metrics == {"grad_norm": 0.0}
    with pytest.raises(SequenceRefused, match=r"seq_id 1 .* given up after 0.01 s"):
        service.submit(model_id, 1, OptimStep(AdamParams()))


def test_a_seed_that_was_not_given_is_drawn_and_told(service):
    session_id = session(service)
    seeds = [service.model_info(model(service, session_id, seq_id)).lora.seed for seq_id in range(2)]
    assert None not in seeds
    assert seeds[0] != seeds[1]


def test_a_retried_create_keeps_the_seed_it_drew(service):
    session_id = session(service)
    first = service.create_model(session_id, 0, MODEL, LoraSpec(rank=2))
    seed = service.model_info(first.model_id).lora.seed
    assert service.create_model(session_id, 0, MODEL, LoraSpec(rank=2)) == first
    assert service.model_info(first.model_id).lora.seed == seed
    with pytest.raises(SequenceRefused, match="this CreateModel has another lora"):
        service.create_model(session_id, 0, MODEL, LoraSpec(rank=3))
    with pytest.raises(SequenceRefused, match="has another user_metadata"):
        service.create_model(session_id, 0, MODEL, LoraSpec(rank=2), {"a": "b"})


def test_what_is_asked_of_nobody_is_not_remembered(service):
    """Each made-up id would stay for as long as the server runs."""
    before = dict(service.sessions._leases._heard)
    with pytest.raises(Forgotten):
        service.sample("nobody:sample:0", 0, prompt=PROMPT)
    with pytest.raises(UnknownName):
        service.submit("nobody:train:0", 1, OptimStep(AdamParams()))
    assert service.sessions._leases._heard == before
