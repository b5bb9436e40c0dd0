"""Adapters put into a data directory and taken out of it, without a server; one may run on it meanwhile."""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weaver.checkpoints import checkpoint_folder, read_checkpoint, write_checkpoint
from weaver.domain import Adapter, ModelState
from weaver.engine.executor import EXTERNAL, SAMPLER, TRAINING, checkpoint_path
from weaver.errors import InvalidInput, UnknownName
from weaver.service import door
from weaver.store import Store


class AdapterShelf:
    """What is put here has rows and folders of its own, under ids nobody else has: a server that runs finds it at the
    next request, and nothing that it holds changes. `close` it."""

    def __init__(self, data_dir: Path, *, create: bool, clock: Callable[[], float] = time.time) -> None:
        """Raises UnknownName where there is no data directory yet, unless it is to be made."""
        if not create and not (data_dir / "weaver.sqlite").exists():
            raise UnknownName(f"{data_dir} is no data directory of weaver: it has no weaver.sqlite; give --data-dir")
        self._store, self._data_dir = Store.in_folder(data_dir, clock), data_dir

    def put(self, adapter: Adapter, name: str, source: Path) -> tuple[str, str]:
        """A training state without an optimizer's, and a snapshot to sample from; their paths."""
        if not door.NAME.fullmatch(name):
            raise InvalidInput(
                f"--name {name!r} must be 1 to 128 letters, digits, '.', '_' or '-', not '.' or '-' first"
            )
        session_id = str(uuid.uuid4())
        model_id = f"{session_id}:train:0"
        details: dict[str, Any] = {"user_metadata": {}, "tags": [], "sdk_version": "", "project_id": None}
        self._store.add_session(session_id, details | {"display_name": f"import of {source}"})
        self._store.end_session(session_id, "success")
        self._store.add_model(model_id, session_id, adapter.base_model, adapter.lora, {"imported_from": str(source)})
        training, sampler = (self._write(adapter, model_id, kind, name) for kind in (TRAINING, SAMPLER))
        return training, sampler

    def take(self, path: str) -> Adapter:
        """The adapter of a saved state or snapshot, checked against its manifest."""
        kind = door.parse_path(path)[1]
        if kind == EXTERNAL:
            raise InvalidInput(f"path {path!r} is an export already; download it, or name a state or a snapshot")
        row = self._store.checkpoint(path)
        if row is None:
            raise UnknownName(f"there is no checkpoint {path!r} in {self._data_dir}, or it has expired")
        return read_checkpoint(self._data_dir / row["folder"], optimizer=False).adapter

    def close(self) -> None:
        self._store.close()

    def _write(self, adapter: Adapter, model_id: str, kind: str, name: str) -> str:
        folder = checkpoint_folder(self._data_dir, model_id, kind, name)
        size_bytes = write_checkpoint(folder, ModelState(adapter, None))
        path = checkpoint_path(model_id, kind, name)
        self._store.put_checkpoint(
            path=path,
            model_id=model_id,
            kind=kind,
            name=name,
            base_model=adapter.base_model,
            lora=asdict(adapter.lora),
            created=self._store.clock(),
            expires=None,
            size_bytes=size_bytes,
            folder=str(folder.relative_to(self._data_dir)),
            user_metadata={},
        )
        return path
