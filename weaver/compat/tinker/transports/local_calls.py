"""The JSON endpoints, answered by the service itself: checked and answered by the code that the routes use."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AwareDatetime, Field
from pydantic_core import to_json

from weaver.compat.tinker import admin_answers, answers, requests, rest_answers, rest_requests
from weaver.compat.tinker.transports.contract import Call, Json
from weaver.compat.tinker.usage_window import check_window
from weaver.engine.executor import checkpoint_path
from weaver.errors import InvalidInput
from weaver.service import Service
from weaver.service.archive import check_slot

Handler = Callable[[Service, Call], Json]
Body = TypeVar("Body", bound=requests.Ignoring)


class Query(requests.Ignoring):
    """Beside these, a scope, which is checked and then nothing: everything here is the user's own."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 20
    offset: Annotated[int, Field(ge=0, lt=2**63)] = 0
    access_scope: Literal["owned", "accessible"] = "owned"
    project_id: str | None = None
    event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all"
    day: Annotated[date | None, Field(strict=False)] = None


class UsageWindow(requests.Ignoring):
    starting_on: Annotated[AwareDatetime, Field(strict=False)]
    ending_before: Annotated[AwareDatetime, Field(strict=False)]


def _body(model: type[Body], call: Call) -> Body:
    return requests.parse(model, dict(call.body or {}))


def _query(call: Call) -> Query:
    return requests.parse(Query, dict(call.query))


def _path(call: Call) -> str:
    return checkpoint_path(call.path["run"], call.path["kind"], call.path["name"])


def create_session(service: Service, call: Call) -> Json:
    body = _body(requests.CreateSession, call)
    session_id = service.create_session(
        user_metadata=body.user_metadata,
        tags=body.tags,
        project_id=body.project_id,
        display_name=body.display_name,
        sdk_version=body.sdk_version,
    )
    return {"session_id": session_id}


def heartbeat(service: Service, call: Call) -> Json:
    service.heartbeat(_body(requests.SessionHeartbeat, call).session_id)
    return {}


def finish_session(service: Service, call: Call) -> Json:
    body = _body(requests.FinishSession, call)
    service.finish_session(call.path["session"], body.reason.type, body.detail)
    return {}


def get_info(service: Service, call: Call) -> Json:
    return answers.model_info(service.model_info(_body(requests.GetInfo, call).model_id))


def create_sampling_session(service: Service, call: Call) -> Json:
    body = _body(requests.CreateSamplingSession, call)
    created = service.create_sampling_session(
        body.session_id, body.sampling_session_seq_id, base_model=body.base_model, model_path=body.model_path
    )
    return {"sampling_session_id": created}


def join_sampling_session(service: Service, call: Call) -> Json:
    """The model's configuration is read with it: in a process of its own the client may be the first to need it."""
    sampler_id = _body(requests.JoinSamplingSession, call).sampling_session_id
    service.base_model(service.sampler_info(sampler_id).base_model)
    return {"client_counter": service.join_sampling_session(sampler_id)}


def get_sampler(service: Service, call: Call) -> Json:
    return answers.sampler_info(service.sampler_info(call.path["sampler"]))


def capabilities(service: Service, call: Call) -> Json:
    return answers.capabilities(service.supported_models())


def list_training_runs(service: Service, call: Call) -> Json:
    query = _query(call)
    return rest_answers.training_runs(service.archive.runs(query.limit, query.offset, query.project_id))


def get_training_run(service: Service, call: Call) -> Json:
    _query(call)
    return rest_answers.training_run(service.archive.run(call.path["run"]))


def list_checkpoints_of_run(service: Service, call: Call) -> Json:
    return rest_answers.checkpoints(service.archive.checkpoints_of_run(call.path["run"]))


def list_checkpoints(service: Service, call: Call) -> Json:
    query = _query(call)
    return rest_answers.checkpoints_page(service.archive.checkpoints(query.limit, query.offset))


def delete_checkpoint(service: Service, call: Call) -> Json:
    service.archive.delete(_path(call))
    return {}


def publish(service: Service, call: Call) -> Json:
    service.archive.set_public(_path(call), public=True)
    return {}


def unpublish(service: Service, call: Call) -> Json:
    service.archive.set_public(_path(call), public=False)
    return {}


def set_ttl(service: Service, call: Call) -> Json:
    service.archive.set_ttl(_path(call), _body(rest_requests.SetTtl, call).ttl_seconds)
    return {}


def external_weights_urls(service: Service, call: Call) -> Json:
    """Links to the files themselves."""
    path = _path(call)
    links = service.downloads.links(service.checkpoint_info(path))
    urls = {file: service.downloads.open(path, file, signed).resolve().as_uri() for file, signed in links.items()}
    expires = datetime.fromtimestamp(min(signed.expires for signed in links.values()), UTC)
    return {"urls": urls, "expires": expires.isoformat()}


def weights_info(service: Service, call: Call) -> Json:
    return answers.weights_info(service.checkpoint_info(_body(requests.WeightsInfo, call).tinker_path))


def copy_weights(service: Service, call: Call) -> Json:
    if call.access_token is not None:
        raise InvalidInput("weights_access_token must be absent: every checkpoint here is the user's own")
    body = _body(rest_requests.CopyWeights, call)
    slot = check_slot(body.session_id, body.model_seq_id, body.destination_project_id)
    copied = service.archive.copy(
        body.source_path,
        project_id=body.destination_project_id,
        slot=slot,
        ttl_seconds=body.ttl_seconds,
        key=call.key,
    )
    return {"tinker_path": copied}


def list_sessions(service: Service, call: Call) -> Json:
    query = _query(call)
    return rest_answers.sessions(service.sessions.page(query.limit, query.offset))


def get_session(service: Service, call: Call) -> Json:
    _query(call)
    session_id, known = call.path["session"], service.sessions
    return rest_answers.session(known.info(session_id), known.runs(session_id), known.samplers(session_id))


def search_sessions(service: Service, call: Call) -> Json:
    body = _body(rest_requests.SearchSessions, call)
    found, more = service.sessions.search(body.search(), body.after(), body.limit)
    holdings = service.sessions.holdings([info.session_id for info in found])
    return rest_answers.found_sessions(found, holdings, more=more)


def assign_project(service: Service, call: Call) -> Json:
    service.sessions.move(call.path["session"], _body(rest_requests.AssignProject, call).project_id)
    return {}


def audit(service: Service, call: Call) -> Json:
    query = _query(call)
    wanted = query.day or datetime.fromtimestamp(service.meter.now(), UTC).date()
    midnight = datetime(wanted.year, wanted.month, wanted.day, tzinfo=UTC).timestamp()
    return admin_answers.audit(service.sessions.events(midnight, midnight + 86_400), query.event_type)


def billing_usage(service: Service, call: Call) -> Json:
    window = requests.parse(UsageWindow, dict(call.query))
    check_window(window.starting_on, window.ending_before, service.meter.now())
    report = service.meter.report(window.starting_on.timestamp(), window.ending_before.timestamp())
    return admin_answers.usage(report)


def checkpoint_storage(service: Service, call: Call) -> Json:
    return admin_answers.storage(service.sessions.holdings_by_project(_query(call).project_id))


def trace_export(data_dir: Path) -> Handler:
    """Writes what a session did into a file of the data directory, and answers its link."""

    def export(service: Service, call: Call) -> Json:
        session_id = service.sessions.info(call.path["session"]).session_id
        file = data_dir / "traces" / f"{session_id}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(to_json(admin_answers.trace(service.meter.spans(session_id), service.meter.now())))
        return {"status": "ready", "url": file.resolve().as_uri()}

    return export


_CHECKPOINT: Final = "/training_runs/{run}/checkpoints/{kind}/{name}"
HANDLERS: Final[Mapping[tuple[str, str], Handler]] = {
    ("POST", "/create_session"): create_session,
    ("POST", "/session_heartbeat"): heartbeat,
    ("POST", "/sessions/{session}/finish"): finish_session,
    ("POST", "/get_info"): get_info,
    ("POST", "/create_sampling_session"): create_sampling_session,
    ("POST", "/join_sampling_session"): join_sampling_session,
    ("GET", "/samplers/{sampler}"): get_sampler,
    ("GET", "/get_server_capabilities"): capabilities,
    ("GET", "/training_runs"): list_training_runs,
    ("GET", "/training_runs/{run}"): get_training_run,
    ("GET", "/training_runs/{run}/checkpoints"): list_checkpoints_of_run,
    ("GET", "/checkpoints"): list_checkpoints,
    ("DELETE", _CHECKPOINT): delete_checkpoint,
    ("POST", f"{_CHECKPOINT}/publish"): publish,
    ("DELETE", f"{_CHECKPOINT}/publish"): unpublish,
    ("PUT", f"{_CHECKPOINT}/ttl"): set_ttl,
    ("GET", f"{_CHECKPOINT}/external_weights_urls"): external_weights_urls,
    ("POST", "/weights_info"): weights_info,
    ("POST", "/copy_weights"): copy_weights,
    ("GET", "/sessions"): list_sessions,
    ("GET", "/sessions/{session}"): get_session,
    ("POST", "/sessions/search"): search_sessions,
    ("PUT", "/sessions/{session}/project"): assign_project,
    ("GET", "/audit"): audit,
    ("GET", "/billing/usage/events"): billing_usage,
    ("GET", "/billing/usage/checkpoints/current"): checkpoint_storage,
}
SLOW: Final = frozenset(
    {"/create_sampling_session", "/join_sampling_session", "/get_server_capabilities", "/copy_weights"}
)
"""What may load a model's configuration, or copies files."""
