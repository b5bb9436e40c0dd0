"""Checkpoints: saves of three types, exports for sampling, lists, lifetimes, loads.

A name stands for one checkpoint of a model, whatever its type: `weaver://` paths do not tell types apart. Where
Tinker's face has made both a state and a snapshot of one name, each use finds the one it can use.
"""

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.acknowledging import acknowledged
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import Json, NameTaken
from weaver.compat.weaver_wire.ids import checkpoint_id, inner, parse_path, path_of, service_path
from weaver.compat.weaver_wire.times import iso_time
from weaver.compat.weaver_wire.training import in_turn
from weaver.domain import LoadState, Operation, SaveForSampler, SaveState, StateLoaded, StateSaved
from weaver.engine.executor import EXTERNAL, SAMPLER, TRAINING
from weaver.errors import InvalidInput, UnknownName
from weaver.service import CheckpointInfo, Service
from weaver.service.archive import PINS

TYPE: Final = "checkpoint_type"
"""Among a state's metadata: it was saved without the optimizer's."""
WEIGHT, WEIGHT_AND_OPTIMIZER, SAMPLING = "weight", "weight_and_optimizer", "sampling"
PAGE: Final = 1000


def type_of(info: CheckpointInfo) -> str:
    if info.kind == SAMPLER:
        return SAMPLING
    return WEIGHT if info.user_metadata.get(TYPE) == WEIGHT else WEIGHT_AND_OPTIMIZER


def checkpoint_answer(info: CheckpointInfo) -> Json:
    lasts = None if info.expires is None else round(info.expires - info.created)
    return {
        "id": checkpoint_id(info),
        "path": path_of(info),
        "model_id": path_of(info).split("/")[2],
        "name": info.name,
        "type": type_of(info),
        "checkpoint_type": type_of(info),
        "status": "completed",
        "base_model": info.base_model,
        "train_unembed": info.lora.train_unembed,
        "train_mlp": info.lora.train_mlp,
        "train_attn": info.lora.train_attn,
        "size_bytes": info.size_bytes,
        "ttl_seconds": lasts,
        "created_at": iso_time(info.created),
        "expires_at": None if info.expires is None else iso_time(info.expires),
    }


def checkpoints_of(service: Service, model_id: str) -> Sequence[CheckpointInfo]:
    """Newest first, those that this wire has: neither exports of Tinker's face nor snapshots of deployments. Raises
    UnknownName."""
    return [info for info in service.archive.checkpoints_of_run(model_id) if _is_ours(info)]


def _is_ours(info: CheckpointInfo) -> bool:
    return info.kind != EXTERNAL and PINS not in info.user_metadata


def find(service: Service, wanted_id: str) -> CheckpointInfo:
    """The checkpoint of that UUID. Raises UnknownName."""
    offset = 0
    while True:
        page = service.archive.checkpoints(PAGE, offset)
        for info in page.items:
            if _is_ours(info) and checkpoint_id(info) == wanted_id:
                return info
        offset += PAGE
        if offset >= page.total:
            raise UnknownName(f"there is no checkpoint {wanted_id!r}, or it has expired")


def named(service: Service, path: str) -> CheckpointInfo:
    """The one checkpoint of a `weaver://` or `tinker://` path."""
    if not path.startswith("weaver://"):
        return service.checkpoint_info(path)
    model_id, name = parse_path(path)
    found = [info for info in checkpoints_of(service, model_id) if info.name == name]
    if not found:
        raise UnknownName(f"there is no checkpoint {path!r}, or it has expired")
    if len(found) > 1:
        both = " and ".join(info.path for info in found)
        raise InvalidInput(f"path {path!r} names several checkpoints, {both}; give one of these instead")
    return found[0]


def free_name(service: Service, model_id: str, name: str | None, begins: str) -> str:
    """The name, or one made up. Raises NameTaken."""
    if name is None:
        return f"{begins}-{secrets.token_hex(6)}"
    for info in checkpoints_of(service, model_id):
        if info.name == name:
            raise NameTaken(
                f"{path_of(info)} is there already, a checkpoint of type {type_of(info)!r}; checkpoints never change: "
                "choose another name"
            )
    return name


async def list_checkpoints(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    found = checkpoints_of(context.service, inner(params["model_id"]))
    return 200, {"items": [checkpoint_answer(info) for info in found]}


async def save_checkpoint(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, model_id = requests.parse(requests.SaveCheckpoint, body), inner(params["model_id"])
    context.service.model_info(model_id)
    if asked.name is None or not context.numbering.repeats(context.service, model_id, _save(asked, asked.name)):
        name = free_name(context.service, model_id, asked.name, "checkpoint")
    else:
        name = asked.name
    ticket = await in_turn(context, model_id, None, _save(asked, name))
    return await acknowledged(context, ticket, partial(_saved, context.service))


def _save(asked: requests.SaveCheckpoint, name: str) -> Operation:
    match asked.type:
        case "sampling":
            return SaveForSampler(name, asked.ttl_seconds)
        case "weight":
            return SaveState(name, ttl_seconds=asked.ttl_seconds, user_metadata={TYPE: WEIGHT}, optimizer=False)
        case _:
            return SaveState(name, ttl_seconds=asked.ttl_seconds)


def _saved(service: Service, result: StateSaved) -> Json:
    return checkpoint_answer(service.checkpoint_info(result.path))


async def export_sampler(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, model_id = requests.parse(requests.ExportSampler, body), inner(params["model_id"])
    context.service.model_info(model_id)
    operation = SaveForSampler(_name_of_export(context, model_id, asked), asked.ttl_seconds)
    ticket = await in_turn(context, model_id, asked.seq_id, operation)
    return await acknowledged(context, ticket, partial(_exported, context.service))


def _name_of_export(context: WireContext, model_id: str, asked: requests.ExportSampler) -> str:
    """Made of the number where none is given, so that a repeat of the request is one."""
    if asked.path is None:
        return f"sampler-{asked.seq_id}"
    if not context.numbering.knows(model_id, asked.seq_id):
        free_name(context.service, model_id, asked.path, "")
    return asked.path


def _exported(service: Service, result: StateSaved) -> Json:
    answer = _saved(service, result)
    return {"model_path": answer["path"], **answer}


async def set_ttl(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, model_id = requests.parse(requests.SetTtl, body), inner(params["model_id"])
    if "ttl_seconds" not in body:
        raise InvalidInput("ttl_seconds is missing; give seconds from now, or null for a checkpoint that never expires")
    info = named(context.service, asked.path)
    if info.model_id != model_id:
        raise InvalidInput(f"path {asked.path!r} is not of the model {params['model_id']!r}")
    context.service.archive.set_ttl(info.path, asked.ttl_seconds)
    return 200, checkpoint_answer(context.service.checkpoint_info(info.path))


async def load(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, model_id = requests.parse(requests.Load, body), inner(params["model_id"])
    context.service.model_info(model_id)
    path = service_path(asked.path, TRAINING)
    if asked.path.startswith("weaver://"):
        path = _loadable(context.service, asked)
    ticket = await in_turn(context, model_id, None, LoadState(path, asked.include_optimizer))
    return await acknowledged(context, ticket, partial(_loaded, asked.path))


def _loadable(service: Service, asked: requests.Load) -> str:
    model_id, name = parse_path(asked.path)
    same = {info.kind: info for info in checkpoints_of(service, model_id) if info.name == name}
    if TRAINING not in same:
        if SAMPLER in same:
            raise InvalidInput(
                f"path {asked.path!r} is a checkpoint of type 'sampling', which holds nothing to train on from; load "
                "one that save_state made"
            )
        raise UnknownName(f"there is no checkpoint {asked.path!r}, or it has expired")
    if asked.include_optimizer and type_of(same[TRAINING]) == WEIGHT:
        raise InvalidInput(
            f"path {asked.path!r} is a checkpoint of type 'weight': it holds no optimizer state. Use load_state, or "
            "save with checkpoint_type='weight_and_optimizer'"
        )
    return same[TRAINING].path


def _loaded(path: str, result: StateLoaded) -> Json:
    return {"status": "completed", "path": path}


ENDPOINTS: Final[Sequence[tuple[str, str, Any]]] = (
    ("GET", "/models/{model_id}/checkpoints", list_checkpoints),
    ("POST", "/models/{model_id}/checkpoints", save_checkpoint),
    ("POST", "/models/{model_id}/export-sampler", export_sampler),
    ("PATCH", "/models/{model_id}/checkpoints/ttl", set_ttl),
    ("POST", "/models/{model_id}/load", load),
)
