"""Checkpoint folders: on this machine and, where there is a checkpoint store, kept there and fetched when missing."""

import logging
import shutil
import threading
import uuid
from pathlib import Path

from weaver.checkpoints import checkpoint_folder, delete_checkpoint, write_beside
from weaver.errors import CheckpointDamaged, InvalidInput, ServerError
from weaver.operators import CheckpointStore, OpenStore
from weaver.registry import Registry

log = logging.getLogger(__name__)


class KeptFolders:
    """The folders below `data_dir` that have a row in the database. Every method may be called from any thread, and may
    wait for the store."""

    def __init__(self, data_dir: Path, store: OpenStore | None = None) -> None:
        self.data_dir, self._store = data_dir, store
        self._fetching = threading.Lock()

    def new(self, model_id: str, kind: str, name: str) -> Path:
        """Where a new checkpoint goes: a folder that was never there, neither here nor in the store."""
        folder = checkpoint_folder(self.data_dir, model_id, kind, name)
        return folder if self._store is None else folder.with_name(f"{name}~{uuid.uuid4().hex}")

    def keep(self, folder: Path) -> None:
        """A complete new folder becomes one that lasts. Raises ServerError where it cannot; it is gone then."""
        if self._store is None:
            return
        try:
            self._store.put(self._name(folder), folder)
        except Exception as error:  # a store is a plugin, and networks fail in many ways
            shutil.rmtree(folder, ignore_errors=True)
            raise ServerError(
                f"the checkpoint store did not take the checkpoint: {type(error).__name__}: {error}; save it again"
            ) from error

    def local(self, folder: Path) -> Path:
        """The folder with its files on this machine. Raises CheckpointDamaged where they are nowhere."""
        if self._store is None or folder.exists():
            return folder
        store, name = self._store, self._name(folder)
        with self._fetching:
            if not folder.exists():
                try:
                    write_beside(folder, lambda beside: store.get(name, beside))
                except Exception as error:
                    if not folder.exists():  # another process may have been first
                        raise CheckpointDamaged(
                            f"the checkpoint {folder.name!r} is not here, and the checkpoint store does not give it: "
                            f"{type(error).__name__}: {error}"
                        ) from error
        return folder

    def delete(self, folder: Path) -> None:
        """Here and in the store."""
        if self._store is not None:
            self._store.delete(self._name(folder))
        delete_checkpoint(folder)

    def delete_if_possible(self, folder: Path) -> bool:
        """Whether the folder is gone; where the store cannot be reached, it is for later."""
        try:
            self.delete(folder)
        except Exception:  # a store is a plugin, and networks fail in many ways
            log.exception("the checkpoint folder %s could not be deleted; it is tried again", folder)
            return False
        return True

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.data_dir).as_posix()


def open_store(registry: Registry, url: str | None) -> OpenStore | None:
    """The store that a URL names. Raises InvalidInput for what is no URL, UnknownName for a scheme nobody has."""
    if url is None:
        return None
    scheme, separator, place = url.partition("://")
    if not separator or not place:
        raise InvalidInput(f"the checkpoint store {url!r} must be a URL like s3://bucket/prefix or file:///a/folder")
    record: CheckpointStore = registry.store(scheme)
    return record.open(url)
