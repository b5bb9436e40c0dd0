"""Where checkpoints are kept: another folder of this machine, and whatever fsspec knows of (s3, gs).

A folder is complete when its list of files is there, which is written last.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from weaver.errors import InvalidInput, MissingPackage
from weaver.hookspecs import hookimpl
from weaver.operators import CheckpointStore

LIST: Final = "files.json"
_EXTRAS: Final = {"s3": "s3", "gs": "gs"}


class LocalStore:
    """Folders below another one, say of a disk that many machines share. Written beside and renamed."""

    def __init__(self, url: str) -> None:
        self._root = Path(url.partition("://")[2])
        if not self._root.is_absolute():
            raise InvalidInput(f"the checkpoint store {url!r} must name an absolute path: file:///a/folder")
        self._root.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, folder: Path) -> None:
        target = self._root / name
        beside = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            shutil.copytree(folder, beside)
            for path in (*beside.iterdir(), beside):
                _sync(path)
            beside.rename(target)
            _sync(target.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def get(self, name: str, folder: Path) -> None:
        shutil.copytree(self._root / name, folder, dirs_exist_ok=True)

    def delete(self, name: str) -> None:
        shutil.rmtree(self._root / name, ignore_errors=True)


class FsspecStore:
    """A prefix of anything that fsspec can open, with the credentials that its own packages find."""

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0]
        extra = _EXTRAS.get(scheme, "s3")
        try:
            fsspec: Any = import_module("fsspec")
            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise MissingPackage(
                f"the checkpoint store {url!r}: {error}. pip install 'weaver-train[{extra}]'"
            ) from error
        self._root = root.rstrip("/")

    def put(self, name: str, folder: Path) -> None:
        place, files = f"{self._root}/{name}", sorted(folder.iterdir())
        self._files.makedirs(place, exist_ok=True)
        for file in files:
            self._files.put_file(str(file), f"{place}/{file.name}")
        self._files.pipe_file(
            f"{place}/{LIST}", json.dumps({file.name: file.stat().st_size for file in files}).encode()
        )

    def get(self, name: str, folder: Path) -> None:
        place = f"{self._root}/{name}"
        for file, size in json.loads(self._files.cat_file(f"{place}/{LIST}")).items():
            self._files.get_file(f"{place}/{file}", str(folder / file))
            if (found := (folder / file).stat().st_size) != size:
                raise OSError(f"{place}/{file} has {found} bytes; {size} were put there")

    def delete(self, name: str) -> None:
        place = f"{self._root}/{name}"
        if self._files.exists(f"{place}/{LIST}"):
            self._files.rm_file(f"{place}/{LIST}")
        if self._files.exists(place):
            self._files.rm(place, recursive=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@hookimpl
def weaver_checkpoint_stores() -> Iterable[CheckpointStore]:
    yield CheckpointStore("file", LocalStore, "another folder of this machine, like a shared disk")
    descriptions = {
        "s3": "a bucket of S3, or of what speaks its API; pip install 'weaver-train[s3]'",
        "gs": "a bucket of Google's Cloud Storage; pip install 'weaver-train[gs]'",
        "memory": "fsspec's memory of this process, for tests",
    }
    for scheme, description in descriptions.items():
        yield CheckpointStore(scheme, FsspecStore, description)
