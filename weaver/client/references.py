"""What names a checkpoint, an artifact or a deployment, checked before it becomes part of a URL."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from weaver.client.transports.contract import Json
from weaver.types import Checkpoint

KINDS: Final = ("hf_model", "hf_adapter")
MOST_NAME: Final = 63
MOST_REPLICAS: Final = 8
MOST_GPUS: Final = 16

_URI: Final = re.compile(
    r"weaver://(?P<model>[A-Za-z0-9][A-Za-z0-9-]*)/checkpoints/(?P<name>[^/]+)(?:/artifacts/(?P<kind>[^/]+))?/?"
)
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class ArtifactAddress:
    """An artifact by its id, or by its checkpoint and, perhaps, its kind."""

    artifact_id: str | None = None
    model_id: str | None = None
    path: str | None = None
    kind: str | None = None


def resource_id(value: str, kind: str) -> str:
    """Raises ValueError for anything but a UUID as it is usually written."""
    found = value.strip()
    try:
        canonical = str(UUID(found))
    except ValueError:
        raise ValueError(f"{kind} id must be a UUID, got {value!r}") from None
    if found.lower() != canonical:
        raise ValueError(f"{kind} id must be a canonical hyphenated UUID, got {value!r}")
    return canonical


def artifact_address(target: str) -> ArtifactAddress:
    """Raises ValueError for what names none."""
    named = target.strip()
    if not named:
        raise ValueError("download target must not be empty")
    if not named.startswith("weaver://"):
        return ArtifactAddress(artifact_id=resource_id(named, "artifact"))
    found = _URI.fullmatch(named)
    if found is None:
        raise ValueError(
            f"Unrecognized weaver URI {named!r}: expected weaver://{{model_id}}/checkpoints/{{name}} or "
            "weaver://{model_id}/checkpoints/{name}/artifacts/{kind}"
        )
    if found["kind"] not in (None, *KINDS):
        raise ValueError(f"Unknown artifact kind {found['kind']!r} in {named!r}; expected one of {KINDS}")
    path = f"weaver://{found['model']}/checkpoints/{found['name']}"
    return ArtifactAddress(model_id=found["model"], path=path, kind=found["kind"])


def model_of(path: str | None) -> str | None:
    """The model whose checkpoint it is."""
    found = _URI.match((path or "").strip())
    return None if found is None else found["model"]


def checkpoint_id(checkpoint: str | Checkpoint, model_id: str, listed: Sequence[Json]) -> str:
    """Of a checkpoint, its path or its id; paths are looked up in `listed`."""
    if isinstance(checkpoint, Checkpoint):
        if not checkpoint.id:
            raise ValueError("Checkpoint object has no id")
        return resource_id(checkpoint.id, "checkpoint")
    named = checkpoint.strip()
    if not named:
        raise ValueError("checkpoint reference must not be empty")
    if "://" not in named:
        return resource_id(named, "checkpoint")
    owner = model_of(named)
    if owner not in (None, model_id):
        raise ValueError(f"Checkpoint path {named!r} belongs to model {owner}, but this client trains model {model_id}")
    found = by_path(listed, named)
    if found is None:
        raise ValueError(
            f"No checkpoint with path {named!r} found for model {model_id}; "
            "pass a Checkpoint from save_state() or list_checkpoints()"
        )
    return found


def by_path(listed: Sequence[Json], path: str) -> str | None:
    """The id of the checkpoint of this path."""
    return next((str(item["id"]) for item in listed if item.get("path") == path), None)


def completed(artifacts: Sequence[Json], kind: str | None, target: str) -> str:
    """The id of the one artifact that is ready. Raises RuntimeError for none, ValueError for several."""
    ready = [one for one in artifacts if one.get("status") in (None, "completed") and kind in (None, one["kind"])]
    if not ready:
        wanted = f" of kind {kind!r}" if kind else ""
        raise RuntimeError(
            f"No completed HF weights artifact{wanted} exists for {target}. Call export_weights() first, then retry."
        )
    if len(ready) > 1:
        kinds = sorted(str(one["kind"]) for one in ready)
        raise ValueError(
            f"Multiple completed artifacts exist for {target} (kinds: {kinds}); "
            "disambiguate with kind='hf_model' or kind='hf_adapter'."
        )
    return str(ready[0]["id"])


def deployment_body(
    name: str, gpu_type: str | None, replicas: Any, gpus_per_replica: Any, overwrite: Any
) -> dict[str, Any]:
    """Raises ValueError for a name that is no label, and for numbers no deployment has."""
    label = name.strip()
    if not label:
        raise ValueError("deployment name must not be empty")
    if len(label) > MOST_NAME:
        raise ValueError(f"deployment name must be at most {MOST_NAME} characters, got {len(label)}")
    if not _NAME.fullmatch(label):
        raise ValueError(
            f"invalid deployment name {label!r}: it may contain only letters, digits, '.', '-' and '_', "
            "and must start and end with a letter or digit"
        )
    if not isinstance(overwrite, bool):
        raise ValueError(f"overwrite must be a bool, got {overwrite!r}")
    body: Json = {"name": label, "overwrite": overwrite, "replicas": _between(replicas, MOST_REPLICAS, "replicas")}
    if gpus_per_replica is not None:
        body["gpus_per_replica"] = _between(gpus_per_replica, MOST_GPUS, "gpus_per_replica")
    if gpu_type is not None:
        if not gpu_type.strip():
            raise ValueError("gpu_type must not be blank; pass None to use the server default")
        body["gpu_type"] = gpu_type.strip()
    return body


def _between(value: Any, most: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an int, got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"{name} must be between 1 and {most}, got {value}")
    return value
