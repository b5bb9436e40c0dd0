"""Sessions; and what there is one of here: an organization, a project, a cluster, a price of 0."""

import json
import uuid
from typing import Any, Final

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import Json, NotOffered
from weaver.compat.weaver_wire.ids import ORGANIZATION_ID, PROJECT_ID, inner
from weaver.compat.weaver_wire.metrics import checked_points
from weaver.compat.weaver_wire.models import as_texts
from weaver.compat.weaver_wire.paging import page_answer, page_of
from weaver.compat.weaver_wire.texts import tokenizer_path
from weaver.compat.weaver_wire.times import iso_time
from weaver.errors import UnknownName
from weaver.service.records import SessionInfo

LABEL: Final = "label."
POLICY: Final = "scheduling_policy"
CLUSTER: Final = "local"
ORGANIZATION: Final = {
    "id": ORGANIZATION_ID, "slug": "local", "name": "local", "display_name": "local", "current_user_role": "owner",
}  # fmt: skip
PROJECT: Final = {
    "id": PROJECT_ID, "organization_id": ORGANIZATION_ID, "slug": "default", "name": "default",
    "display_name": "default", "current_user_role": "owner",
}  # fmt: skip
PRICED: Final = ("training_tokens", "sampling_prefill_tokens", "sampling_cached_prefill_tokens",
                 "sampling_output_tokens")  # fmt: skip


async def create_session(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """Labels and the scheduling policy are kept among the metadata, where searches find them."""
    asked = requests.parse(requests.CreateSession, body)
    _scope(asked.organization_id, asked.project_id)
    kept = as_texts(asked.user_metadata) | {f"{LABEL}{name}": value for name, value in asked.labels.items()}
    if asked.scheduling_policy is not None:
        kept[POLICY] = json.dumps(_policy(asked.scheduling_policy))
    session_id = context.service.create_session(
        user_metadata=kept, tags=asked.tags, display_name=asked.name, sdk_version=asked.sdk_version
    )
    return 201, _session_answer(context.service.sessions.info(session_id))


def _policy(asked: requests.SchedulingPolicy) -> Json:
    if set(asked.clusters) - {CLUSTER}:
        raise NotOffered(f"scheduling_policy.clusters is {asked.clusters}: this server is one cluster, {CLUSTER!r}")
    return {"mode": asked.mode} | ({"clusters": asked.clusters} if asked.clusters else {})


def _session_answer(info: SessionInfo) -> Json:
    metadata = dict(info.user_metadata)
    policy = metadata.pop(POLICY, None)
    labels = {name.removeprefix(LABEL): metadata.pop(name) for name in info.user_metadata if name.startswith(LABEL)}
    return {
        "id": info.session_id,
        "name": info.display_name,
        "status": "active" if info.ended is None else "ended",
        "organization_id": ORGANIZATION_ID,
        "project_id": PROJECT_ID,
        "labels": labels,
        "user_metadata": metadata,
        "created_at": iso_time(info.created),
        **({} if policy is None else {POLICY: json.loads(policy)}),
    }


async def get_session(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """Of a session that lives: a client asks to go on with it."""
    info = context.service.sessions.info(params["session_id"])
    context.service.heartbeat(info.session_id)
    return 200, _session_answer(info)


async def heartbeat(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    context.service.heartbeat(params["session_id"])
    return 204, None


async def log_metrics(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked = requests.parse(requests.LogMetrics, body)
    for model_id in {point.model_id for point in asked.metrics}:
        context.service.archive.run(inner(model_id))
    context.service.heartbeat(params["session_id"])
    context.service.run_metrics.add(params["session_id"], checked_points(asked))
    return 201, {"accepted": len(asked.metrics)}


async def get_metrics(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """What was logged, in order. This SDK cannot ask for it; people can."""
    session_id = context.service.sessions.info(params["session_id"]).session_id
    return 200, {"items": list(context.service.run_metrics.of(session_id))}


async def organizations(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return 200, [ORGANIZATION]


async def projects(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    _scope(params["organization_id"], None)
    return 200, [PROJECT]


async def resolve_scope(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    _scope(query.get("organization"), query.get("project"))
    return 200, {"organization": ORGANIZATION, "project": PROJECT}


def _scope(organization: str | None, project: str | None) -> None:
    """Raises UnknownName for any but the one there is, by its id, slug or name."""
    for what, given, one in (("organization", organization, ORGANIZATION), ("project", project, PROJECT)):
        if given not in (None, one["id"], one["slug"], one["name"]):
            raise UnknownName(f"there is no {what} {given!r} here; there is one, {one['slug']!r} ({one['id']})")


async def scheduling_options(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return 200, {"modes": ["auto", "fixed", "prefer"], "clusters": [{"id": CLUSTER, "name": CLUSTER}]}


async def supported_models(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return _catalog(context, query, {})


async def model_catalog(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    price = {"unit": "token", "unit_price_micros": 0}
    return _catalog(context, query, {"prices": {f"{kind}:lora": price for kind in PRICED}})


def _catalog(context: WireContext, query: Params, more: Json) -> Answer:
    _scope(query.get("organization_id"), None)
    limit, offset = page_of(query, 100)
    found = context.service.supported_models()
    items = [_model(context, one.name, one.context_length) | more for one in found[offset : offset + limit]]
    return 200, page_answer(items, limit, offset, len(found))


def _model(context: WireContext, name: str, context_length: int) -> Json:
    path = tokenizer_path(context.service.base_model(name).tokenizer_location, name, is_local=context.is_local)
    return {
        "id": str(uuid.uuid5(uuid.UUID(ORGANIZATION_ID), name)),
        "name": name,
        "status": "available",
        "visibility": "public",
        "training_modes": ["lora"],
        "config": {"resource": {"tokenizer": {"path": path}}},
        "metadata": {"max_sequence_length": context_length},
    }


ENDPOINTS: Final[tuple[tuple[str, str, Any], ...]] = (
    ("POST", "/sessions", create_session),
    ("GET", "/sessions/{session_id}", get_session),
    ("POST", "/sessions/{session_id}/heartbeat", heartbeat),
    ("POST", "/sessions/{session_id}/metrics", log_metrics),
    ("GET", "/sessions/{session_id}/metrics", get_metrics),
    ("GET", "/organizations", organizations),
    ("GET", "/organizations/{organization_id}/projects", projects),
    ("GET", "/scope/resolve", resolve_scope),
    ("GET", "/scheduling/options", scheduling_options),
    ("GET", "/supported-models", supported_models),
    ("GET", "/model-catalog", model_catalog),
)
