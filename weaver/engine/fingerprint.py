"""Tells a repeat of a request from a different request that uses its number."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A digest for each part of a request: enough to tell that another one differs, and in what. Small, for servers
    remember many."""

    names: tuple[str, ...] = ()
    digests: bytes = b""

    def by_name(self) -> dict[str, bytes]:
        return {name: self.digests[n * _SIZE : (n + 1) * _SIZE] for n, name in enumerate(self.names)}


def fingerprint(**parts: object) -> Fingerprint:
    """Equal parts, arrays included, have equal digests."""
    return Fingerprint(_shared(tuple(parts)), b"".join(map(_digest, parts.values())))


@lru_cache(maxsize=256)
def _shared(names: tuple[str, ...]) -> tuple[str, ...]:
    """The same object for the same kind of request."""
    return names


def parts_of(value: Any) -> dict[str, object]:
    """The fields of a frozen value."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def differences(first: Fingerprint, second: Fingerprint) -> str:
    """The names of the parts that differ."""
    ones, others = first.by_name(), second.by_name()
    return " and ".join(sorted(name for name in ones | others if ones.get(name) != others.get(name)))


def _digest(value: object) -> bytes:
    digest = hashlib.blake2b(digest_size=_SIZE)
    for part in _parts(value):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _parts(value: Any) -> Iterable[bytes | memoryview]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value):
        yield type(value).__name__.encode()
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield str(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, tuple | list):
        yield f"[{len(value)}".encode()
        for element in value:
            yield from _parts(element)
    else:
        yield repr(value).encode()
