"""Models that are trained, and the runs they were."""

import json
from dataclasses import asdict
from typing import Any, Final

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.checkpoints import checkpoint_answer, checkpoints_of
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import Json, NotOffered
from weaver.compat.weaver_wire.ids import ORGANIZATION_ID, PROJECT_ID, inner, outer, session_of
from weaver.compat.weaver_wire.names import check_length, served_name
from weaver.compat.weaver_wire.paging import page_answer, page_of
from weaver.compat.weaver_wire.texts import tokenizer_path
from weaver.compat.weaver_wire.times import iso_time
from weaver.domain import LoraSpec
from weaver.errors import Forgotten
from weaver.service.records import RunInfo

LORA: Final = "lora"
OWNER: Final = "local"
INSTANCES: Final = ("trainer", "inference")
TIERS: Final = ("normal",)


def as_texts(metadata: dict[str, Any]) -> dict[str, str]:
    """What is no text is kept as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


async def create_model(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked = requests.parse(requests.CreateModel, body)
    _check_offered(asked)
    context.forget_models()
    service = context.service
    base_model, length = served_name(service, asked.base_model)
    if asked.training_max_sequence_length is not None:
        check_length(service, base_model, asked.training_max_sequence_length, "training_max_sequence_length")
    most = [one for one in (length, asked.training_max_sequence_length) if one is not None]
    ticket = service.create_model(
        params["session_id"],
        asked.model_seq_id,
        base_model,
        LoraSpec(**asked.lora_config.model_dump()),
        as_texts(asked.user_metadata),
    )
    if most:
        context.max_lengths[ticket.model_id] = min(most)
    await _created(context, ticket.request_id)
    location = service.model_info(ticket.model_id).tokenizer_location
    return 201, {
        "id": outer(ticket.model_id),
        "session_id": params["session_id"],
        "base_model": asked.base_model,
        "training_mode": LORA,
        "status": "running",
        "tokenizer_path": tokenizer_path(location, base_model, is_local=context.is_local),
    }


def _check_offered(asked: requests.CreateModel) -> None:
    if asked.training_mode not in (None, LORA):
        raise NotOffered(
            f"training_mode is {asked.training_mode!r}: this server trains LoRA adapters; leave training_mode out, or "
            "set it to 'lora'"
        )
    if asked.performance_tier not in (None, *TIERS):
        raise NotOffered(
            f"performance_tier is {asked.performance_tier!r}: this server has one tier, 'normal', which is as fast as "
            "its machine"
        )


async def _created(context: WireContext, request_id: str) -> None:
    """Wait a while for a model that cannot be made, to say so at once. One that takes longer fails what is asked of it
    later."""
    try:
        future = context.service.future(request_id)
    except Forgotten:  # a repeat, long after
        return
    context.operations.add(request_id, future, lambda _: {})
    await context.operations.settled(request_id, context.hold_seconds, context.stopping)
    if future.done() and (error := future.exception()) is not None:
        raise error


async def terminate(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, model_id = requests.parse(requests.Terminate, body), inner(params["model_id"])
    context.service.archive.run(model_id)
    answer: Json = {}
    instances = INSTANCES if asked.instance_types is None else asked.instance_types
    if "trainer" in instances:
        context.service.end_model(model_id)
        context.numbering.forget(model_id)
        context.max_lengths.pop(model_id, None)
        answer["trainer"] = {"status": "terminated"}
    if "inference" in instances:
        answer["inference"] = {"status": "shared", "message": "one sampler draws for all; there is nothing to end"}
    return 200, answer


def model_answer(context: WireContext, run: RunInfo) -> Json:
    return {
        "id": outer(run.model_id),
        "model_id": outer(run.model_id),
        "session_id": session_of(run.model_id),
        "organization_id": ORGANIZATION_ID,
        "project_id": PROJECT_ID,
        "base_model": run.base_model,
        "training_mode": LORA,
        "status": "running" if context.has(run.model_id) else "terminated",
        "lora_config": {name: asdict(run.lora)[name] for name in _LORA_FIELDS},
        "user_metadata": dict(run.user_metadata),
        "model_seq_id": int(run.model_id.rpartition(":")[2]),
        "last_seq_id": context.numbering.last_seen(run.model_id),
        "owner_user_id": OWNER,
        "owner_tenant_id": OWNER,
        "created_at": iso_time(run.created),
        "updated_at": iso_time(run.last_request),
        "last_request_at": iso_time(run.last_request),
    }


_LORA_FIELDS: Final = ("rank", "alpha", "seed", "train_unembed", "train_mlp", "train_attn")


async def list_runs(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    limit, offset = page_of(query)
    page = context.service.archive.runs(limit, offset)
    items = [model_answer(context, run) for run in page.items]
    return 200, page_answer(items, limit, offset, page.total)


async def get_model(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return 200, model_answer(context, context.service.archive.run(inner(params["model_id"])))


async def get_run(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """A run with its checkpoints."""
    model_id = inner(params["model_id"])
    answer = model_answer(context, context.service.archive.run(model_id))
    return 200, answer | {
        "checkpoints": [checkpoint_answer(info) for info in checkpoints_of(context.service, model_id)]
    }


ENDPOINTS: Final = (
    ("POST", "/sessions/{session_id}/models", create_model),
    ("POST", "/models/{model_id}/terminate", terminate),
    ("GET", "/models", list_runs),
    ("GET", "/models/{model_id}", get_model),
    ("GET", "/training-runs", list_runs),
    ("GET", "/training-runs/{model_id}", get_run),
)
