"""Links that need no key: each opens one file, for an hour."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weaver.engine.executor import EXTERNAL
from weaver.errors import InvalidInput, NotAllowed, UnknownName
from weaver.kept import KeptFolders
from weaver.service import door
from weaver.service.records import CheckpointInfo
from weaver.service.tarball import Tarball
from weaver.store import Store

LINK_SECONDS: Final = 3600
KEY_FILE: Final = "signing.key"


@dataclass(frozen=True, slots=True)
class Signed:
    """What a link carries beside the name of its resource. `expires`: seconds since the epoch."""

    expires: int
    signature: str


class Signer:
    """Signs names of resources with a key that lies in the data directory, so that links outlive a restart."""

    def __init__(self, data_dir: Path, clock: Callable[[], float]) -> None:
        self._key, self._clock = _key(data_dir / KEY_FILE), clock

    def sign(self, *resource: str) -> Signed:
        expires = int(self._clock()) + LINK_SECONDS
        return Signed(expires, self._signature(resource, expires))

    def check(self, signed: Signed, *resource: str) -> None:
        """Raises NotAllowed for a link that was not made here for this resource, or whose hour is over."""
        right = self._signature(resource, signed.expires)
        if not hmac.compare_digest(right.encode(), signed.signature.encode()):
            raise NotAllowed("the link's signature is wrong: it was changed, or not made by this server")
        if signed.expires <= self._clock():
            raise NotAllowed("the link has expired; ask for a new one")

    def _signature(self, resource: tuple[str, ...], expires: int) -> str:
        text = "\n".join((*resource, str(expires)))  # no part can hold a line break: names are checked
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class Downloads:
    """Files of exported weights. Every method may be called from any thread."""

    def __init__(self, store: Store, signer: Signer, folders: KeptFolders) -> None:
        self._store, self._signer, self._folders = store, signer, folders

    def links(self, info: CheckpointInfo) -> Mapping[str, Signed]:
        """For each file of an export. Raises InvalidInput for another kind of checkpoint."""
        if info.kind != EXTERNAL:
            raise InvalidInput(f"{info.path!r} is no export; save_weights_external makes one")
        return {file: self._signer.sign(info.path, file) for file in self._files(info.path)}

    def open(self, path: str, file: str, signed: Signed) -> Path:
        """Where the file of a signed link lies. Raises NotAllowed, or UnknownName when it is gone."""
        self._signer.check(signed, path, file)
        door.parse_path(path)
        files = self._files(path)
        if file not in files:
            raise UnknownName(f"there is no file {file!r} in {path!r}")
        return files[file]

    def sign_archive(self, info: CheckpointInfo) -> Signed:
        """For all files of a checkpoint of any kind in one."""
        return self._signer.sign("archive", info.path)

    def open_archive(self, path: str, signed: Signed) -> Tarball:
        """The files of a signed link. Raises NotAllowed, or UnknownName when they are gone."""
        self._signer.check(signed, "archive", path)
        door.parse_path(path)
        return Tarball(self._files(path))

    def sign_trace(self, session_id: str) -> Signed:
        return self._signer.sign("trace", session_id)

    def check_trace(self, session_id: str, signed: Signed) -> None:
        """Raises NotAllowed unless the link is for this session's trace."""
        self._signer.check(signed, "trace", session_id)

    def _files(self, path: str) -> Mapping[str, Path]:
        row = self._store.checkpoint(path)
        if row is None:
            raise UnknownName(f"there is no checkpoint {path!r}, or it has expired")
        folder = self._folders.local(self._folders.data_dir / row["folder"])
        return {file.name: file for file in sorted(folder.iterdir())}


def _key(file: Path) -> bytes:
    """The key in the file, made by whoever comes first and readable to the owner only."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    if not file.exists():
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(secrets.token_bytes(32))
            out.flush()
            os.fsync(out.fileno())
        with suppress(FileExistsError):
            os.link(beside, file)
        beside.unlink()
    return file.read_bytes()
