"""What can stand in `model`: a base model, a snapshot's path, the name of a deployment, or a training run, which means
its newest snapshot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weaver.compat.openai.errors import FieldRefused, UnknownModel
from weaver.compat.weaver_wire.ids import inner, service_path
from weaver.errors import UnknownName
from weaver.service import Service
from weaver.service.archive import PINS
from weaver.service.deployments import RUNNING
from weaver.service.records import CheckpointInfo

_PAGE = 1000
_SNAPSHOTS = "sampler_weights"


@dataclass(frozen=True, slots=True)
class Target:
    """What is sampled from. `snapshot` None: the base model. `made` tells a snapshot from a later one of its path."""

    base_model: str
    snapshot: str | None = None
    made: float = 0.0

    @property
    def weight_version(self) -> str:
        """Which weights these are: the snapshot's path, or the base model's name."""
        return self.snapshot or self.base_model


def target_of(service: Service, model: str) -> Target:
    """Raises UnknownModel where there is nothing of that name, InvalidInput for a path that is not sampled from."""
    if "://" in model:
        return _snapshot(service, model)
    if model in _served(service):
        return Target(model)
    if deployed := service.deployments.path_of(model):
        return _snapshot(service, deployed)
    try:
        newest = service.archive.run(inner(model)).last_sampler_checkpoint
    except UnknownName:
        raise UnknownModel(
            f"model {model!r} is no base model, no snapshot's path, no deployment and no training run of this server; "
            "GET /v1/models lists what there is"
        ) from None
    if newest is None:
        raise UnknownModel(f"the training run {model!r} has no sampler weights yet; save some, or they have expired")
    return _of_checkpoint(newest)


def listed(service: Service) -> list[dict[str, Any]]:
    """Base models, then deployments, then runs that have snapshots, then snapshots, each newest first."""
    snapshots = list(_snapshots(service))
    newest = {one.model_id: one for one in reversed(snapshots)}
    runs = sorted(newest.values(), key=lambda one: one.created, reverse=True)
    return [
        *(_model(name, 0.0, name) for name in _served(service)),
        *(described(service, one.name) for one in service.deployments.all() if one.status == RUNNING),
        *(_model(one.model_id, one.created, one.base_model) for one in runs),
        *(_model(one.path, one.created, one.base_model) for one in snapshots),
    ]


def described(service: Service, model: str) -> dict[str, Any]:
    """One entry of the list. Raises what `target_of` raises."""
    target = target_of(service, model)
    return _model(model, target.made, target.base_model)


def _snapshot(service: Service, path: str) -> Target:
    """Of a path as Tinker's clients write it, or Weaver's."""
    try:
        return _of_checkpoint(service.checkpoint_info(service_path(path, _SNAPSHOTS)))
    except UnknownName as error:
        raise UnknownModel(str(error)) from None


def _of_checkpoint(saved: CheckpointInfo) -> Target:
    if saved.kind != _SNAPSHOTS:
        raise FieldRefused(f"model {saved.path!r} is no snapshot to sample from; save one for the sampler", "model")
    return Target(saved.base_model, saved.path, saved.created)


def _served(service: Service) -> list[str]:
    return [model.name for model in service.supported_models()]


def _snapshots(service: Service) -> Iterator[CheckpointInfo]:
    """But those that only keep a deployment's weights."""
    offset, total = 0, 1
    while offset < total:
        page = service.archive.checkpoints(_PAGE, offset)
        yield from (one for one in page.items if one.kind == _SNAPSHOTS and PINS not in one.user_metadata)
        offset, total = offset + _PAGE, page.total


def _model(name: str, created: float, base_model: str) -> dict[str, Any]:
    parent = None if name == base_model else base_model
    return {"id": name, "object": "model", "created": int(created), "owned_by": "local", "parent": parent}
