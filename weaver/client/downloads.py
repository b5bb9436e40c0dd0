"""Exported weights, file by file into a folder: whole and checked, or not there.

A file that was cut short lies beside its place as `.part`, and the next attempt goes on where it ends.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

import httpx

from weaver import __version__
from weaver.client.connection import Connection
from weaver.client.errors import api_error, unavailable
from weaver.client.references import KINDS, artifact_address, by_path, completed, resource_id
from weaver.client.transports.contract import Json
from weaver.types import WeightsArtifact

RENEWALS: Final = 3
"""How often links that have expired are asked for again, for each file."""
ATTEMPTS: Final = 3
_CHUNK: Final = 1 << 20
_FIRST_DELAY: Final = 0.5


class LinkExpired(Exception):
    """A link is no longer good; a new one may be."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch; without a size or a digest, that is not checked."""

    name: str
    url: str
    size: int | None
    sha256: str | None

    def is_at(self, place: Path, *, verify: bool) -> bool:
        """Whether it is there already."""
        if self.size is None or place.is_symlink() or not place.is_file() or place.stat().st_size != self.size:
            return False
        return not verify or self.sha256 is None or _digest(place) == self.sha256

    def check(self, part: Path, *, verify: bool) -> None:
        """Raises RuntimeError for a file that is another, and removes it."""
        size = part.stat().st_size
        found = _digest(part) if verify and self.sha256 is not None else self.sha256
        if self.size not in (None, size):
            wrong = f"Downloaded size mismatch for {self.name!r}: expected {self.size} bytes, got {size}"
        elif found != self.sha256:
            wrong = f"sha256 mismatch for {self.name!r}: expected {self.sha256}, got {found}"
        else:
            return
        part.unlink()
        raise RuntimeError(wrong)


class Download:
    """One artifact's files on their way into a folder."""

    def __init__(self, connection: Connection, artifact_id: str, folder: Path, *, verify: bool) -> None:
        self._connection, self._artifact_id = connection, artifact_id
        self._folder, self._verify = folder, verify
        self._files: dict[str, RemoteFile] = {}

    async def run(self, most_at_once: int) -> Path:
        """The folder, with all files in it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        await self._renew()
        places = asyncio.Semaphore(most_at_once)

        async def fetched(name: str, client: httpx.AsyncClient) -> None:
            async with places:
                await self._fetch(name, client)

        headers = {"User-Agent": f"weaver-client/{__version__}"}  # links carry their own permission, never the key
        timeout = httpx.Timeout(60, connect=10)
        fetcher = httpx.AsyncClient(headers=headers, timeout=timeout, follow_redirects=True)
        async with fetcher as client, asyncio.TaskGroup() as tasks:
            for name in self._files:
                tasks.create_task(fetched(name, client))
        return self._folder

    async def _renew(self) -> None:
        answer = await self._connection.request("GET", f"/artifacts/{self._artifact_id}/download")
        self._files = {one.name: one for one in remote_files(answer.get("files"))}

    async def _fetch(self, name: str, client: httpx.AsyncClient) -> None:
        place = self._folder / name
        if not place.parent.resolve().is_relative_to(self._folder.resolve()):
            raise ValueError(f"{name!r} lies outside of {self._folder}: a link leads there")
        if await asyncio.to_thread(self._files[name].is_at, place, verify=self._verify):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{place.name}.part")
        renewals = attempts = 0
        while True:
            try:
                await _streamed(self._files[name], part, client)
                break
            except LinkExpired as error:
                renewals += 1
                if renewals > RENEWALS:
                    raise RuntimeError(f"the links to {name!r} are refused again and again: {error}") from error
                await self._renew()
            except httpx.TransportError as error:
                attempts += 1
                if attempts > ATTEMPTS:
                    raise unavailable(f"{name}: {error or type(error).__name__}") from error
                await asyncio.sleep(_FIRST_DELAY * 2 ** (attempts - 1))
        await asyncio.to_thread(self._files[name].check, part, verify=self._verify)
        part.replace(place)


async def _streamed(file: RemoteFile, part: Path, client: httpx.AsyncClient) -> None:
    """The rest of the file behind what is there of it."""
    begins = part.stat().st_size if part.is_file() and not part.is_symlink() else 0
    if file.size is not None and begins > file.size:
        begins = 0  # of another file
    with _opened(part, begins) as sink:
        async with aclosing(_pieces(file, begins, client)) as pieces:
            async for is_whole, piece in pieces:
                if is_whole:
                    sink.seek(0)
                    sink.truncate()
                await asyncio.to_thread(sink.write, piece)


def _opened(part: Path, begins: int) -> BinaryIO:
    """To be written on; never what somebody else's link leads to."""
    if begins == 0:
        part.unlink(missing_ok=True)
    flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | (os.O_APPEND if begins else os.O_CREAT | os.O_EXCL)
    return os.fdopen(os.open(part, flags, 0o644), "ab" if begins else "wb")


async def _pieces(file: RemoteFile, begins: int, client: httpx.AsyncClient) -> AsyncGenerator[tuple[bool, bytes], None]:
    """With the word, for the first, whether it is the whole file's beginning although the rest was asked for."""
    url = urlsplit(file.url)
    if url.scheme == "file":
        with open(unquote(url.path), "rb") as source:
            source.seek(begins)
            while piece := await asyncio.to_thread(source.read, _CHUNK):
                yield False, piece
        return
    headers = {"Range": f"bytes={begins}-"} if begins else {}
    async with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code in (401, 403):
            raise LinkExpired(f"HTTP {response.status_code}")
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is there
        if not response.is_success:
            await response.aread()
            raise api_error(response.status_code, None, response.headers, response.text)
        is_whole = begins > 0 and response.status_code != httpx.codes.PARTIAL_CONTENT
        async for piece in response.aiter_bytes(_CHUNK):
            yield is_whole, piece
            is_whole = False


def remote_files(listed: Any) -> Sequence[RemoteFile]:
    """Raises ValueError for names that may lead out of a folder, here or on another system, and for one twice."""
    if not isinstance(listed, list) or not listed:
        raise ValueError("artifact download descriptor contains no files")
    found = [_remote_file(one) for one in listed]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"duplicate file name in download descriptor: {name!r}")
    return found


def _remote_file(raw: Json) -> RemoteFile:
    name, url, size, digest = str(raw.get("name") or ""), raw.get("url"), raw.get("size"), raw.get("sha256")
    if not name or not url:
        raise ValueError(f"descriptor file entry missing name or url: {raw!r}")
    path, elsewhere = PurePosixPath(name), PureWindowsPath(name)
    leads_out = path.is_absolute() or ".." in path.parts or elsewhere.drive or elsewhere.root
    odd = "\\" in name or ":" in name or any(part.rstrip(" .") != part for part in path.parts)
    reserved = any(PureWindowsPath(part).is_reserved() for part in path.parts)
    if leads_out or odd or reserved or str(path) != name or name == ".":
        raise ValueError(f"unsafe file name in download descriptor: {name!r}")
    return RemoteFile(name, str(url), None if size is None else int(size), None if not digest else str(digest).lower())


def _digest(file: Path) -> str:
    found = sha256()
    with file.open("rb") as source:
        while piece := source.read(_CHUNK):
            found.update(piece)
    return found.hexdigest()


async def artifact_id(connection: Connection, target: str | WeightsArtifact, kind: str | None) -> str:
    """Of an artifact, its URI or id, or of the one artifact of a checkpoint."""
    if kind not in (None, *KINDS):
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if isinstance(target, WeightsArtifact):
        if not target.id:
            raise ValueError("WeightsArtifact has no id")
        return resource_id(target.id, "artifact")
    address = artifact_address(target)
    if address.artifact_id is not None:
        return address.artifact_id
    if address.kind and kind and address.kind != kind:
        raise ValueError(f"kind={kind!r} conflicts with the artifact URI kind {address.kind!r}")
    listed = (await connection.request("GET", f"/models/{address.model_id}/checkpoints"))["items"]
    checkpoint = by_path(listed, str(address.path))
    if checkpoint is None:
        raise ValueError(f"No checkpoint with path {address.path!r} found for model {address.model_id}")
    artifacts = (await connection.request("GET", f"/checkpoints/{checkpoint}/artifacts"))["items"]
    return completed(artifacts, address.kind or kind, target)
