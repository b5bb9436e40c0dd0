"""Messages between the server and the process of the engine: JSON, with arrays beside it as they lie in memory."""

import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

_LENGTHS: Final = struct.Struct("<QQ")
"""Of the JSON text, and of all arrays together."""
_ARRAY: Final = "#array"

Message = dict[str, Any]
"""Its keys are words; an array may stand wherever JSON may."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame."""
    blobs: list[bytes] = []

    def placed(value: object) -> dict[str, Any]:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} cannot be sent")
        start = sum(map(len, blobs))
        blobs.append(np.ascontiguousarray(value).tobytes())
        return {_ARRAY: [start, value.dtype.str, list(value.shape)]}

    text = json.dumps(message, default=placed).encode()
    return b"".join([_LENGTHS.pack(len(text), sum(map(len, blobs))), text, *blobs])


def decode(text: bytes, arrays: bytes) -> Message:
    def array(found: dict[str, Any]) -> Any:
        if _ARRAY not in found:
            return found
        start, dtype, shape = found[_ARRAY]
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(arrays, np.dtype(dtype), count, start).reshape(shape).copy()

    message: Message = json.loads(text, object_hook=array)
    return message


class Channel:
    """One end of a socket. Any thread may send; one receives."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._sending = connected, threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where the other end is gone."""
        frame = encode(message)
        with self._sending:
            self._socket.sendall(frame)

    def receive(self) -> Message | None:
        """The next message; None when the other end is gone."""
        lengths = self._read(_LENGTHS.size)
        if lengths is None:
            return None
        text_length, arrays_length = _LENGTHS.unpack(lengths)
        text, arrays = self._read(text_length), self._read(arrays_length)
        return None if text is None or arrays is None else decode(text, arrays)

    def close(self) -> None:
        self._socket.close()

    def _read(self, length: int) -> bytes | None:
        found = bytearray(length)
        view, done = memoryview(found), 0
        while done < length:
            try:
                count = self._socket.recv_into(view[done:])
            except OSError:
                return None
            if not count:
                return None
            done += count
        return bytes(found)
