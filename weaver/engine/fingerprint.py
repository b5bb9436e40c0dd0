"""Tells a repeat of a request from a different request that uses its number."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

Fingerprint = Mapping[str, bytes]
"""A digest for each part of a request: enough to tell that another one differs, and in what."""


def fingerprint(**parts: object) -> Fingerprint:
    """Equal parts, arrays included, have equal digests."""
    return {name: _digest(part) for name, part in parts.items()}


def parts_of(value: Any) -> dict[str, object]:
    """The fields of a frozen value."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def differences(first: Fingerprint, second: Fingerprint) -> str:
    """The names of the parts that differ."""
    return " and ".join(sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)))


def _digest(value: object) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
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
