"""What is kept of training: runs, and the checkpoints that their owners list, publish, copy and delete."""

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from weaver.checkpoints import check_checkpoint, read_checkpoint, write_checkpoint
from weaver.domain import LoraSpec
from weaver.engine.executor import EXTERNAL, SAMPLER, TRAINING, checkpoint_path
from weaver.engine.mismatch import Mismatch
from weaver.errors import AlreadyExists, Forgotten, InvalidInput, UnknownName
from weaver.kept import KeptFolders
from weaver.listing import Listing
from weaver.service import door
from weaver.service.records import CheckpointInfo, Page, RunInfo
from weaver.store import Row, Store

PINS: Final = "pins"
"""Among a snapshot's metadata: it was made to keep the weights of that path."""
_COPIES: Final = uuid.UUID("6f1d3cf0-5a4e-4e6f-9f53-0d7a0c6f6a52")
"""Makes the session of a copy from its idempotency key: a retry finds the first one's copy."""


class Archive:
    """Every method is quick and may be called from any thread. Those that name a checkpoint raise UnknownName when
    there is none of that path, or it has expired."""

    def __init__(
        self,
        store: Store,
        listing: Listing,
        folders: KeptFolders,
        forget: Callable[[str, str], None],
        mismatch: Callable[[str], Mismatch | None],
    ) -> None:
        """`forget` frees what a base model's sampler keeps of an adapter; `mismatch` tells of a model what its sampler
        and its trainer disagree by."""
        self._store, self._listing, self._folders, self._forget = store, listing, folders, forget
        self._data_dir, self._mismatch = folders.data_dir, mismatch
        self._requests: dict[str, float] = {}
        self._lock = threading.RLock()  # around whatever adds or removes folders

    # Runs

    def note_request(self, model_id: str) -> None:
        """A client has asked something of this model."""
        self._requests[model_id] = self._store.clock()

    def runs(self, limit: int, offset: int, project_id: str | None = None) -> Page[RunInfo]:
        rows, total = self._listing.runs(limit, offset, project_id)
        return Page(tuple(self._run_infos(rows)), offset, limit, total)

    def run(self, model_id: str) -> RunInfo:
        row = self._listing.run(model_id)
        if row is None:
            raise UnknownName(f"there is no training run {model_id!r} here")
        return next(iter(self._run_infos([row])))

    def why_not_in_memory(self, model_id: str) -> str:
        """For the client of a model that cannot be trained now: what became of it, and what to do."""
        if self._store.model(model_id) is None:
            return f"there is no model {model_id!r} here"
        return (
            f"model {model_id!r} is not in memory any more: its session ended or the server was restarted. "
            "Continue from a checkpoint with create_training_client_from_state_with_optimizer."
        )

    # Checkpoints

    def checkpoints_of_run(self, model_id: str) -> tuple[CheckpointInfo, ...]:
        """Newest first. Raises UnknownName for a run that never was."""
        self.run(model_id)
        return tuple(map(checkpoint_info, self._listing.checkpoints_of([model_id])))

    def checkpoints(self, limit: int, offset: int) -> Page[CheckpointInfo]:
        rows, total = self._listing.checkpoints(limit, offset)
        return Page(tuple(map(checkpoint_info, rows)), offset, limit, total)

    def checkpoint(self, path: str) -> CheckpointInfo:
        """Raises InvalidInput for a malformed path."""
        return checkpoint_info(self._existing(path))

    def delete(self, path: str) -> None:
        """Nobody can load it any more. Sessions that sample from it already go on; the folder goes with the last."""
        with self._lock:
            self._existing(path)
            self._listing.discard(path)
            self.remove_unused()
        self._listing.note_event("checkpoint_delete", {"tinker_path": path})

    def set_public(self, path: str, *, public: bool) -> None:
        self._existing(path)
        self._listing.set_public(path, public=public)
        self._listing.note_event("checkpoint_publish" if public else "checkpoint_unpublish", {"tinker_path": path})

    def set_ttl(self, path: str, ttl_seconds: int | None) -> None:
        """From now on; None: it never expires."""
        door.check_ttl(ttl_seconds)
        self._existing(path)
        self._listing.set_expiry(path, self._expiry(ttl_seconds))
        self._listing.note_event("checkpoint_set_ttl", {"tinker_path": path, "ttl_seconds": ttl_seconds})

    def copy(
        self,
        path: str,
        *,
        project_id: str | None = None,
        slot: tuple[str, int] | None = None,
        ttl_seconds: int | None = None,
        key: str | None = None,
    ) -> str:
        """A checkpoint of its own with the same content; returns its path. The copy belongs to a run that is not
        trained: one in a new session of `project_id`, or in `slot`, a session and a model number that is free in it.

        A repeat under the same `key` gets the first one's copy.
        """
        door.check_ttl(ttl_seconds)
        if slot is not None:
            self._check_alive(slot[0])
        with self._lock:
            row = self._existing(path)
            session_id, number = slot or (str(uuid.uuid5(_COPIES, key) if key else uuid.uuid4()), 0)
            model_id = f"{session_id}:train:{number}"
            target = checkpoint_path(model_id, row["kind"], row["name"])
            if self._is_repeat(session_id, model_id, target, path):
                return target
            if slot is None:
                self._add_session(session_id, project_id, path)
            metadata = {"copied_from": path}
            self._store.add_model(model_id, session_id, row["base_model"], LoraSpec.of(row["lora"]), metadata)
            self._write_copy(row, model_id, target, ttl_seconds)
        self._listing.note_event("checkpoint_copy", {"tinker_path": path, "copy": target})
        return target

    def pin(self, info: CheckpointInfo, name: str) -> CheckpointInfo:
        """A snapshot to sample from with a checkpoint's weights, of the same run, which lasts until it is deleted."""
        with self._lock:
            row = self._existing(info.path)
            state = read_checkpoint(self._folders.local(self._data_dir / row["folder"]), optimizer=False)
            folder = self._folders.new(info.model_id, SAMPLER, name)
            size_bytes = write_checkpoint(folder, state)
            self._folders.keep(folder)
            target = checkpoint_path(info.model_id, SAMPLER, name)
            made = {"path": target, "kind": SAMPLER, "name": name, "created": self._store.clock(), "expires": None}
            place = {"size_bytes": size_bytes, "folder": str(folder.relative_to(self._data_dir))}
            self._store.put_checkpoint(**{**row, **made, **place, "user_metadata": {PINS: info.path}})
            return self.checkpoint(target)

    # In the background

    def tidy(self) -> None:
        """Take what has expired out, and write down when models were last asked for something."""
        with self._lock:
            self._listing.discard_expired()
            self.remove_unused()
        self._remove_ended_snapshots()
        requests = dict(self._requests)
        self._listing.note_requests(requests)
        for model_id, at in requests.items():
            if self._requests.get(model_id) == at:
                self._requests.pop(model_id, None)

    def remove_unused(self) -> None:
        """Delete the folders of discarded checkpoints that no living session samples from."""
        with self._lock:
            for row in self._listing.unused():
                if not self._folders.delete_if_possible(self._data_dir / row["folder"]):
                    continue
                self._listing.forget_folder(row["folder"])
                self._forget(row["base_model"], row["adapter_id"])

    def _remove_ended_snapshots(self) -> None:
        """A session that ends while a snapshot of it is still to be written leaves that one behind."""
        for folder in (self._data_dir / "snapshots").glob("*"):
            session = self._store.session(folder.name)
            if session is None or session["ended"] is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _existing(self, path: str) -> Row:
        door.parse_path(path)
        row = self._store.checkpoint(path)
        if row is None:
            raise UnknownName(f"there is no checkpoint {path!r}, or it has expired")
        return row

    def _expiry(self, ttl_seconds: int | None) -> float | None:
        return None if ttl_seconds is None else self._store.clock() + ttl_seconds

    def _check_alive(self, session_id: str) -> None:
        session = self._store.session(session_id)
        if session is None or session["ended"] is not None:
            raise Forgotten(f"there is no session {session_id!r}, or it has ended; create a new one")

    def _is_repeat(self, session_id: str, model_id: str, target: str, source: str) -> bool:
        """Whether that copy is there already. Raises AlreadyExists when something else is."""
        model = self._store.model(model_id)
        if model is None:
            return False
        if model["user_metadata"].get("copied_from") != source:
            raise AlreadyExists(f"the training run {model_id!r} is there already; copy into another")
        return self._store.checkpoint(target) is not None

    def _add_session(self, session_id: str, project_id: str | None, source: str) -> None:
        """A session that nobody keeps alive, ended as soon as it is there."""
        if self._store.session(session_id) is None:
            details: dict[str, Any] = {"user_metadata": {}, "tags": [], "sdk_version": ""}
            named = {"project_id": project_id, "display_name": f"copy of {source}"}
            self._store.add_session(session_id, details | named)
            self._store.end_session(session_id, "success")

    def _write_copy(self, row: Row, model_id: str, target: str, ttl_seconds: int | None) -> None:
        source = self._folders.local(self._data_dir / row["folder"])
        if row["kind"] != EXTERNAL:
            check_checkpoint(source)
        folder = self._folders.new(model_id, row["kind"], row["name"])
        _link_files(source, folder)
        self._folders.keep(folder)
        changed = {
            "path": target,
            "model_id": model_id,
            "created": self._store.clock(),
            "expires": self._expiry(ttl_seconds),
            "folder": str(folder.relative_to(self._data_dir)),
        }
        self._store.put_checkpoint(discard_replaced=True, **{**row, **changed})

    def _run_infos(self, rows: Sequence[Row]) -> Iterable[RunInfo]:
        saved = list(map(checkpoint_info, self._listing.checkpoints_of([row["model_id"] for row in rows])))
        for row in rows:
            mine = [one for one in saved if one.model_id == row["model_id"]]
            yield RunInfo(
                model_id=row["model_id"],
                base_model=row["base_model"],
                lora=LoraSpec.of(row["lora"]),
                created=row["created"],
                last_request=self._requests.get(row["model_id"]) or row["at"] or row["created"],
                user_metadata=row["user_metadata"],
                last_checkpoint=_newest(mine, TRAINING),
                last_sampler_checkpoint=_newest(mine, SAMPLER),
                mismatch=self._mismatch(row["model_id"]),
            )


def checkpoint_info(row: Mapping[str, Any]) -> CheckpointInfo:
    names = CheckpointInfo.__slots__
    known = {name: row[name] for name in names if name in row}
    return CheckpointInfo(**{**known, "lora": LoraSpec.of(row["lora"])})


def _newest(infos: Iterable[CheckpointInfo], kind: str) -> CheckpointInfo | None:
    return next((one for one in infos if one.kind == kind and PINS not in one.user_metadata), None)


def _link_files(source: Path, folder: Path) -> None:
    """The same files under a folder of their own, whole or not at all. Checkpoint files are never written in place, so
    both folders may share them; where the file system has no links they are copied."""
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    beside.mkdir(parents=True)
    try:
        for file in source.iterdir():
            try:
                os.link(file, beside / file.name)
            except OSError:
                shutil.copy2(file, beside / file.name)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_slot(session_id: str | None, model_seq_id: int | None, project_id: str | None) -> tuple[str, int] | None:
    """Where a copy goes: into a session's slot, or (None) into a session of its own."""
    if (session_id is None) != (model_seq_id is None):
        raise InvalidInput("session_id and model_seq_id belong together: give both or neither")
    if session_id is None or model_seq_id is None:
        return None
    if project_id is not None:
        raise InvalidInput("destination_project_id is for a copy without session_id; a session has its own project")
    return session_id, model_seq_id
