"""Names under which snapshots are offered to others. Nothing is started for one: the sampler has every snapshot."""

import re
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Final

from weaver.engine.executor import EXTERNAL
from weaver.errors import AlreadyExists, InvalidInput, UnknownName
from weaver.service.archive import Archive
from weaver.service.records import CheckpointInfo
from weaver.store import Store

RUNNING, STOPPED, FAILED = "running", "stopped", "failed"
KIND: Final = "deployment"
NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Deployment:
    """`path` and `saved` tell which checkpoint it is of, `snapshot` is the path of what is sampled from. Times are
    seconds since the epoch."""

    deployment_id: str
    name: str
    path: str
    saved: float
    snapshot: str
    model_id: str
    status: str
    created: float
    updated: float


class Deployments:
    """Every method may be called from any thread."""

    def __init__(self, store: Store, archive: Archive) -> None:
        self._store, self._archive = store, archive
        self._lock = threading.Lock()

    def create(self, info: CheckpointInfo, name: str) -> Deployment:
        """It has a snapshot of its own, so the checkpoint may expire. Raises InvalidInput for an export, AlreadyExists
        for a name that another deployment has."""
        if not NAME.fullmatch(name):
            raise InvalidInput(
                f"name {name!r} must be 1 to 63 letters, digits, '.', '-' or '_', a letter or digit first and last"
            )
        if info.kind == EXTERNAL:
            raise InvalidInput(f"{info.path!r} is an export; deploy a state or a snapshot")
        with self._lock:
            if any(one.name == name and one.status == RUNNING for one in self.all()):
                raise AlreadyExists(f"there is a deployment {name!r} already; delete it first, or choose another name")
            now, deployment_id = self._store.clock(), str(uuid.uuid4())
            snapshot = self._archive.pin(info, f"deployed-{deployment_id}").path
            made = Deployment(deployment_id, name, info.path, info.created, snapshot, info.model_id, RUNNING, now, now)
            self._store.put_document(KIND, made.deployment_id, asdict(made))
        return made

    def all(self) -> Sequence[Deployment]:
        """Newest first, stopped ones too. One whose snapshot is gone has failed."""
        return [self._now(Deployment(**row["body"])) for row in self._store.documents(KIND)]

    def deployment(self, deployment_id: str) -> Deployment:
        """Raises UnknownName."""
        for one in self.all():
            if one.deployment_id == deployment_id:
                return one
        raise UnknownName(f"there is no deployment {deployment_id!r} here")

    def path_of(self, name: str) -> str | None:
        """The snapshot's path that a running deployment offers under a name."""
        return next((one.snapshot for one in self.all() if one.name == name and one.status == RUNNING), None)

    def stop(self, deployment_id: str) -> Deployment:
        """Raises AlreadyExists for one that has been stopped."""
        with self._lock:
            found = self.deployment(deployment_id)
            if found.status == STOPPED:
                raise AlreadyExists(f"the deployment {found.name!r} is stopped already")
            with suppress(UnknownName):  # somebody has deleted it
                self._archive.delete(found.snapshot)
            stopped = replace(found, status=STOPPED, updated=self._store.clock())
            self._store.put_document(KIND, deployment_id, asdict(stopped))
        return stopped

    def _now(self, kept: Deployment) -> Deployment:
        is_gone = kept.status == RUNNING and self._store.checkpoint(kept.snapshot) is None
        return replace(kept, status=FAILED) if is_gone else kept
