"""What is kept, as its owner sees it: runs, checkpoints and sessions by the RestClient."""

from datetime import datetime

import tinker

from weaver.conformance.checks import require
from weaver.conformance.errors import refusal
from weaver.conformance.lab import RANK, Lab, scores, waited
from weaver.conformance.prompts import TEXT

GROUP = "REST"

HOUR = 3600
DIFFERENCE = 120.0
"""Seconds that an expiry may be off: clocks are read at several moments of a request."""
METADATA = {"purpose": "conformance", "try": "7"}


def a_run_tells_what_it_is(lab: Lab) -> None:
    """Dashboards and resumed jobs know a run by its id alone, and find it by any of its checkpoints."""
    with lab.session() as session:
        model = session.model()
        path = waited(model.save_state(lab.new_name())).path
        run = waited(lab.rest().get_training_run(model.model_id))
        found = waited(lab.rest().get_training_run_by_tinker_path(path))
    told = (run.training_run_id, run.base_model, run.is_lora, run.lora_rank)
    expected = (model.model_id, lab.model, True, RANK)
    require(told == expected, f"a run is told as {told}, and is {expected}")
    require(found.training_run_id == model.model_id, f"the run of {path} is told as {found.training_run_id}")
    last = None if run.last_checkpoint is None else run.last_checkpoint.tinker_path
    require(last == path, f"the last checkpoint of a run is told as {last}, and is {path}")


def runs_are_listed_in_pages(lab: Lab) -> None:
    """Tools page through all runs by limit, offset and the total; a page too short or a run twice ends in a loss."""
    rest = lab.rest()
    with lab.session() as session:
        made = {session.model().model_id for _ in range(2)}
        whole = waited(rest.list_training_runs(limit=2))
        pages = [waited(rest.list_training_runs(limit=1, offset=offset)) for offset in range(2)]
    require(
        whole.cursor.total_count >= 2, f"total_count is {whole.cursor.total_count} where there are two runs at least"
    )
    cursors = [(page.cursor.limit, page.cursor.offset) for page in (whole, *pages)]
    require(cursors == [(2, 0), (1, 0), (1, 1)], f"limits and offsets are told as {cursors}, and were 2 0, 1 0 and 1 1")
    listed = [run.training_run_id for run in whole.training_runs]
    require(set(listed) == made, f"the newest two runs are told as {listed}, and are {sorted(made)}")
    one_by_one = [run.training_run_id for page in pages for run in page.training_runs]
    require(one_by_one == listed, f"two pages of one run have {one_by_one}, a page of two {listed}")


def checkpoints_are_listed(lab: Lab) -> None:
    """What is not listed is neither found again nor deleted; it is paid for all the same."""
    rest = lab.rest()
    with lab.session() as session:
        model, name = session.model(), lab.new_name()
        state = waited(model.save_state(name)).path
        sampler = waited(model.save_weights_for_sampler(name)).path
        mine = waited(rest.list_checkpoints(model.model_id)).checkpoints
        page = waited(rest.list_user_checkpoints(limit=1, offset=1))
        whole = waited(rest.list_user_checkpoints(limit=2))
    told = {one.tinker_path: (one.checkpoint_type, one.checkpoint_id) for one in mine}
    expected = {state: ("training", f"weights/{name}"), sampler: ("sampler", f"sampler_weights/{name}")}
    require(told == expected, f"the checkpoints of a run are told as {told}, and are {expected}")
    newest = [one.tinker_path for one in whole.checkpoints]
    require(newest == [sampler, state], f"the newest two checkpoints are told as {newest}, and are {[sampler, state]}")
    require([one.tinker_path for one in page.checkpoints] == newest[1:], f"limit=1, offset=1 of {newest} is {page}")
    total = None if page.cursor is None else page.cursor.total_count
    require(total is not None and total >= 2, f"total_count is {total} where there are two checkpoints at least")


def a_deleted_checkpoint_is_gone(lab: Lab) -> None:
    """Deleting frees what is paid for and takes a model back; it must neither be listed nor loaded any more."""
    rest = lab.rest()
    with lab.session() as session:
        model, name = session.model(), lab.new_name()
        state = waited(model.save_state(name)).path
        sampler = waited(model.save_weights_for_sampler(name)).path
        require(len(scores(session.sampler(sampler), TEXT)) == len(TEXT), "saved weights cannot be sampled from")
        waited(rest.delete_checkpoint_from_tinker_path(state))
        waited(rest.delete_checkpoint(model.model_id, f"sampler_weights/{name}"))
        left = [one.tinker_path for one in waited(rest.list_checkpoints(model.model_id)).checkpoints]
        require(not left, f"both checkpoints of a run were deleted, and {left} are listed")
    with lab.session() as session:
        refusal(lambda: scores(session.sampler(sampler), TEXT))
        refusal(lambda: session.resumed(state))


def publishing_is_shown(lab: Lab) -> None:
    """A public checkpoint can be loaded by everybody, so its owner must see which ones are."""
    rest = lab.rest()
    with lab.session() as session:
        model = session.model()
        path = waited(model.save_state(lab.new_name())).path
        for change, public in (
            (rest.publish_checkpoint_from_tinker_path, True),
            (rest.unpublish_checkpoint_from_tinker_path, False),
        ):
            waited(change(path))
            told = _listed(rest, model, path).public
            require(told is public, f"after {change.__name__} a checkpoint is told with public {told}")


def a_lifetime_is_shown_and_can_be_changed(lab: Lab) -> None:
    """A checkpoint that goes too early is lost, one that stays is paid for."""
    rest = lab.rest()
    with lab.session() as session:
        model = session.model()
        path = waited(model.save_state(lab.new_name(), ttl_seconds=2 * HOUR)).path
        first = _listed(rest, model, path)
        lived = _seconds(first.expires_at) - _seconds(first.time)
        require(
            abs(lived - 2 * HOUR) <= DIFFERENCE, f"a checkpoint with a lifetime of 7200 s expires after {lived:.0f}"
        )
        waited(rest.set_checkpoint_ttl_from_tinker_path(path, 24 * HOUR))
        longer = _seconds(_listed(rest, model, path).expires_at) - _seconds(first.expires_at)
        require(abs(longer - 22 * HOUR) <= DIFFERENCE, f"a day in place of two hours made it {longer:.0f} s longer")
        waited(rest.set_checkpoint_ttl_from_tinker_path(path, None))
        left = _listed(rest, model, path).expires_at
        require(left is None, f"a lifetime that was lifted still ends at {left}")


def metadata_come_back(lab: Lab) -> None:
    """People find their runs and checkpoints by what they wrote on them."""
    with lab.session() as session:
        model = session.model(user_metadata=METADATA)
        path = waited(model.save_state(lab.new_name(), user_metadata=METADATA)).path
        run, saved = waited(lab.rest().get_training_run(model.model_id)), _listed(lab.rest(), model, path)
    for kind, told in (("run", run.user_metadata), ("checkpoint", saved.user_metadata)):
        require(dict(told or {}) == METADATA, f"a {kind}'s user_metadata is told as {told}, and was {METADATA}")


def a_session_lists_what_was_made_in_it(lab: Lab) -> None:
    """A job that has died is cleaned up, or picked up, by its session."""
    rest = lab.rest()
    with lab.session() as session:
        model, _ = session.model(), session.sampler()
        session_id = model.model_id.partition(":train:")[0]
        found, listed = waited(rest.get_session(session_id)), waited(rest.list_sessions(limit=5)).sessions
        bases = [waited(rest.get_sampler(one)).base_model for one in found.sampler_ids]
    require(found.training_run_ids == [model.model_id], f"a session's runs are told as {found.training_run_ids}")
    require(bases == [lab.model], f"the base models of a session's samplers are told as {bases}")
    require(session_id in listed, f"the newest sessions are told as {listed}, without {session_id}")


def weights_tell_what_they_were_trained_with(lab: Lab) -> None:
    """A loader must make an adapter of the same shape on the same base before it can read one."""
    with lab.session() as session:
        model = session.model(train_mlp=False)
        state = waited(model.save_state(lab.new_name())).path
        sampler = waited(model.save_weights_for_sampler(lab.new_name())).path
        found = [waited(lab.rest().get_weights_info_by_tinker_path(path)) for path in (state, sampler)]
    for info in found:
        told = (info.base_model, info.is_lora, info.lora_rank, info.train_mlp, info.train_attn)
        expected = (lab.model, True, RANK, False, True)
        require(told == expected, f"weights are told as {told} (base, LoRA, rank, MLP, attention), and are {expected}")


def _listed(rest: tinker.RestClient, model: tinker.TrainingClient, path: str) -> tinker.Checkpoint:
    """What the list of a run says of one checkpoint."""
    found = [one for one in waited(rest.list_checkpoints(model.model_id)).checkpoints if one.tinker_path == path]
    require(len(found) == 1, f"{path} is listed {len(found)} times among the checkpoints of its run")
    return found[0]


def _seconds(moment: datetime | None) -> float:
    require(moment is not None, "a checkpoint with a lifetime has no expires_at")
    return 0.0 if moment is None else moment.timestamp()


CHECKS = (
    a_run_tells_what_it_is,
    runs_are_listed_in_pages,
    checkpoints_are_listed,
    a_deleted_checkpoint_is_gone,
    publishing_is_shown,
    a_lifetime_is_shown_and_can_be_changed,
    metadata_come_back,
    a_session_lists_what_was_made_in_it,
    weights_tell_what_they_were_trained_with,
)
