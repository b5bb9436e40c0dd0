"""Names on this wire and the service's own. Nothing is remembered: each can be computed from the other.

A model's id is a session's id with a number, `<session>-train-1`, for it stands in `weaver://` paths, which take
letters, digits and hyphens only. Checkpoints go by UUIDs, made of their paths and times.
"""

import re
import uuid
from typing import Final

from weaver.engine.executor import checkpoint_path
from weaver.errors import InvalidInput
from weaver.service.records import CheckpointInfo

ORGANIZATION_ID: Final = "00000000-0000-4000-8000-000000000001"
PROJECT_ID: Final = "00000000-0000-4000-8000-000000000002"
SCHEME: Final = "weaver://"

_CHECKPOINTS: Final = uuid.UUID("5cfa5ec5-64a5-4d43-9c1e-6b1d0f1d6a44")
_INNER: Final = re.compile(r"(?P<session>[^:/]+):(?P<kind>train|sample):(?P<rest>[A-Za-z0-9]+)")
_OUTER: Final = re.compile(r"(?P<session>[A-Za-z0-9-]+)-(?P<kind>train|sample)-(?P<rest>[A-Za-z0-9]+)")
_PATH: Final = re.compile(r"weaver://(?P<model>[^/]+)/checkpoints/(?P<name>[^/]+)")


def outer(inner_id: str) -> str:
    """A model's or sampling session's id as this wire's clients know it."""
    found = _INNER.fullmatch(inner_id)
    return inner_id if found is None else f"{found['session']}-{found['kind']}-{found['rest']}"


def inner(outer_id: str) -> str:
    """The service's id. What is no id of this wire stays as it is: the service does not know it."""
    found = _OUTER.fullmatch(outer_id)
    return outer_id if found is None else f"{found['session']}:{found['kind']}:{found['rest']}"


def session_of(model_id: str) -> str:
    """The session of a model, by its id on either side."""
    return inner(model_id).partition(":")[0]


def weaver_path(model_id: str, name: str) -> str:
    return f"{SCHEME}{outer(model_id)}/checkpoints/{name}"


def path_of(info: CheckpointInfo) -> str:
    return weaver_path(info.model_id, info.name)


def parse_path(path: str) -> tuple[str, str]:
    """The service's model id and the checkpoint's name. Raises InvalidInput."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise InvalidInput(f"path {path!r} is not of the form weaver://<model id>/checkpoints/<name>")
    return inner(found["model"]), found["name"]


def service_path(path: str, kind: str) -> str:
    """`path` as the service has it, where it names a checkpoint of that kind. `tinker://` paths stay as they are."""
    if not path.startswith(SCHEME):
        return path
    model_id, name = parse_path(path)
    return checkpoint_path(model_id, kind, name)


def checkpoint_id(info: CheckpointInfo) -> str:
    return checkpoint_uuid(info.path, info.created)


def checkpoint_uuid(path: str, saved: float) -> str:
    """A UUID that means these weights: a checkpoint that replaces another has one of its own."""
    return str(uuid.uuid5(_CHECKPOINTS, f"{path}@{saved}"))
