"""Checkpoints in Hugging Face's format for the world outside: artifacts, each a folder with a manifest.

An artifact outlives its checkpoint. One that a server was making when it ended has failed.
"""

import hashlib
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from weaver.checkpoints import read_checkpoint, write_beside, write_export
from weaver.domain import ModelState
from weaver.errors import UnknownName
from weaver.kept import KeptFolders
from weaver.service import door
from weaver.service.base_models import BaseModels
from weaver.service.downloads import Signed, Signer
from weaver.service.records import CheckpointInfo
from weaver.store import Store

ADAPTER, MODEL = "hf_adapter", "hf_model"
"""The kinds: PEFT's two files, or the base model with the adapter added to its weights."""
PENDING, COMPLETED, FAILED = "pending", "completed", "error"
KIND: Final = "artifact"


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """`path` and `saved` tell which checkpoint it is of: its path and when that was saved. Times are seconds since the
    epoch; `expires` None: never. `error` says what failed."""

    artifact_id: str
    path: str
    saved: float
    model_id: str
    kind: str
    status: str
    created: float
    updated: float
    expires: float | None
    files: tuple[ArtifactFile, ...] = ()
    error: str | None = None


class Exports:
    """Every method may be called from any thread. One export is made at a time: a merge holds a whole model."""

    def __init__(self, store: Store, folders: KeptFolders, base_models: BaseModels, signer: Signer) -> None:
        self._store, self._folders, self._base_models, self._signer = store, folders, base_models, signer
        self._folder = folders.data_dir / "exports"
        self._lock = threading.RLock()
        self._making: dict[tuple[str, float, str], tuple[str, Future[Artifact]]] = {}
        self._worker = ThreadPoolExecutor(1, "weaver-export")
        for left in self.all():
            if left.status == PENDING:
                self._write(replace(left, status=FAILED, error="the server ended before it was made; export it again"))

    def start(
        self, info: CheckpointInfo, *, merged: bool, ttl_seconds: int | None, force: bool
    ) -> "Artifact | tuple[str, Future[Artifact]]":
        """The artifact of a checkpoint, if there is one and it is not to be made anew; else the id of a new one and its
        future. One that is being made already is waited for.

        `ttl_seconds` None: it lasts as long as the checkpoint.
        """
        door.check_ttl(ttl_seconds)
        kind = MODEL if merged else ADAPTER
        key = (info.path, info.created, kind)
        with self._lock:
            if key in self._making:
                return self._making[key]
            older = [one for one in self.of(info) if one.kind == kind and one.status == COMPLETED]
            if older and not force:
                return older[0]
            now = self._store.clock()
            expires = info.expires if ttl_seconds is None else now + ttl_seconds
            artifact = Artifact(
                str(uuid.uuid4()), info.path, info.created, info.model_id, kind, PENDING, now, now, expires
            )
            row = self._store.checkpoint(info.path)
            if row is None:
                raise UnknownName(f"there is no checkpoint {info.path!r}, or it has expired")
            self._write(artifact)
            future = self._worker.submit(self._make, artifact, row["folder"], key, older)
            self._making[key] = (artifact.artifact_id, future)
            return self._making[key]

    def all(self) -> Sequence[Artifact]:
        """Newest first, without those that have expired."""
        now = self._store.clock()
        found = [_artifact(row["body"]) for row in self._store.documents(KIND)]
        return [one for one in found if one.expires is None or one.expires > now]

    def of(self, info: CheckpointInfo) -> Sequence[Artifact]:
        return [one for one in self.all() if (one.path, one.saved) == (info.path, info.created)]

    def artifact(self, artifact_id: str) -> Artifact:
        """Raises UnknownName for one that is not there, or has expired."""
        for one in self.all():
            if one.artifact_id == artifact_id:
                return one
        raise UnknownName(f"there is no artifact {artifact_id!r}, or it has expired")

    def sign(self, artifact: Artifact, name: str) -> Signed:
        """For a link to one file."""
        return self._signer.sign(KIND, artifact.artifact_id, name)

    def open(self, artifact_id: str, name: str, signed: Signed) -> Path:
        """The file of a signed link. Raises NotAllowed, or UnknownName when it is gone."""
        self._signer.check(signed, KIND, artifact_id, name)
        return self.file(self.artifact(artifact_id), name)

    def file(self, artifact: Artifact, name: str) -> Path:
        """Where a file of it lies."""
        if name not in {file.name for file in artifact.files}:
            raise UnknownName(f"there is no file {name!r} in the artifact {artifact.artifact_id!r}")
        return self._folder / artifact.artifact_id / name

    def tidy(self) -> None:
        """Take out what has expired."""
        living = {one.artifact_id for one in self.all()}
        for row in self._store.documents(KIND):
            if row["document_id"] not in living:
                self._remove(row["document_id"])

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _make(
        self, artifact: Artifact, folder: str, key: tuple[str, float, str], older: Sequence[Artifact]
    ) -> Artifact:
        try:
            written = self._write(replace(artifact, status=COMPLETED, files=self._files(artifact, folder)))
        except Exception as error:
            self._write(replace(artifact, status=FAILED, error=str(error) or type(error).__name__))
            raise
        finally:
            with self._lock:
                self._making.pop(key, None)
        for one in older:
            self._remove(one.artifact_id)
        return written

    def _files(self, artifact: Artifact, folder: str) -> tuple[ArtifactFile, ...]:
        state = read_checkpoint(self._folders.local(self._folders.data_dir / folder), optimizer=False)
        place = self._folder / artifact.artifact_id
        if artifact.kind == ADAPTER:
            write_export(place, ModelState(state.adapter, None), seal=None)
        else:
            write_beside(place, lambda beside: self._base_models.merge(state.adapter, beside))
        return tuple(_described(file) for file in sorted(place.iterdir()))

    def _write(self, artifact: Artifact) -> Artifact:
        written = replace(artifact, updated=self._store.clock())
        self._store.put_document(KIND, written.artifact_id, asdict(written))
        return written

    def _remove(self, artifact_id: str) -> None:
        self._store.delete_document(KIND, artifact_id)
        shutil.rmtree(self._folder / artifact_id, ignore_errors=True)


def _described(file: Path) -> ArtifactFile:
    with file.open("rb") as opened:
        return ArtifactFile(file.name, file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest())


def _artifact(body: Mapping[str, Any]) -> Artifact:
    return Artifact(**{**body, "files": tuple(ArtifactFile(**file) for file in body["files"])})
