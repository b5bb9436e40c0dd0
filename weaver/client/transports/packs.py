"""Arrays in JSON: as lists, or beside it in one pack of bytes that `$tensor` entries point into."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_hex
from typing import Any, Final

import numpy as np
import zstandard

from weaver.types.tensor import DTYPES

TENSOR: Final = "$tensor"
LARGEST: Final = 8 << 30


def plain(value: Any) -> Any:
    """With lists in place of arrays."""
    match value:
        case np.ndarray() | np.generic():
            return value.tolist()
        case dict():
            return {key: plain(one) for key, one in value.items()}
        case list() | tuple() if value and isinstance(value[0], dict | list | tuple | np.ndarray | np.generic):
            return [plain(one) for one in value]
    return value


def to_json(body: Any) -> bytes:
    """JSON has no NaN and no infinity: they are null, which a service refuses by name."""
    listed = plain(body)
    try:
        return json.dumps(listed, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(listed), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case float() if not np.isfinite(value):
            return None
    return value


@dataclass(frozen=True, slots=True)
class Packed:
    """A request whose arrays are in `content`, with the pack's size and digest in its manifest."""

    content: bytes
    content_type: str


class _Writer:
    """Puts arrays behind each other, little-endian and row by row."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._offset = 0

    def put(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        entry = {
            "format": "raw-tensor",
            "codec": "raw",
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "offset": self._offset,
            "size_bytes": len(data),
        }
        self.parts.append(data)
        self._offset += len(data)
        return {TENSOR: entry}

    def write(self, value: Any) -> Any:
        match value:
            case np.ndarray():
                return self.put(value)
            case {"data": np.ndarray() as data, "dtype": str()} if len(value) == 2:
                return self.put(data)
            case dict():
                return {key: self.write(one) for key, one in value.items()}
            case list():
                return [self.write(one) for one in value]
        return value


def packed(body: Mapping[str, Any], compression: str) -> Packed | None:
    """A request in two parts: JSON, and the bytes of its arrays; None where it has no arrays."""
    writer = _Writer()
    payload = {**body["payload"], "tensor_transport": "http-binary", "tensor_compression": compression}
    request = {"payload": writer.write(payload)}
    if not writer.parts:
        return None
    decoded = b"".join(writer.parts)
    if len(decoded) > LARGEST:
        raise ValueError(f"the tensors of one request take {len(decoded)} bytes: at most {LARGEST} travel together")
    pack = zstandard.compress(decoded) if compression == "zstd" else decoded
    about = {
        "size_bytes": len(pack),
        "sha256": sha256(pack).hexdigest(),
        "codec": compression,
        "decoded_size_bytes": len(decoded),
    }
    boundary = f"weaver-{token_hex(16)}"
    manifest = to_json({"version": 1, "request": request, "tensor_pack": about})
    parts = (
        (b'name="manifest"', b"application/json", manifest),
        (b'name="tensor_pack"; filename="pack.bin"', b"application/octet-stream", pack),
    )
    content = b"".join(
        b"--%b\r\nContent-Disposition: form-data; %b\r\nContent-Type: %b\r\n\r\n%b\r\n"
        % (boundary.encode(), name, kind, part)
        for name, kind, part in parts
    )
    return Packed(content + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")


def unpacked(response: Mapping[str, Any], pack: bytes) -> dict[str, Any]:
    """A result with its tensors as {"data", "dtype", "shape"}. Raises ValueError for a pack that is not its own."""
    about = response["tensor_pack"]
    if len(pack) != about["size_bytes"] or sha256(pack).hexdigest() != str(about["sha256"]).lower():
        raise ValueError("the result's tensor pack differs from its size or its sha256")
    size = about.get("decoded_size_bytes", len(pack))
    decoded = zstandard.decompress(pack, max_output_size=size) if about.get("codec", "raw") == "zstd" else pack
    if len(decoded) != size:
        raise ValueError(f"the result's tensor pack has {len(decoded)} bytes, not {size}")
    rest = {name: value for name, value in response.items() if name != "tensor_pack"}
    found = _read(rest, decoded)
    return dict(found)


def _read(value: Any, pack: bytes) -> Any:
    match value:
        case {"$tensor": {"dtype": dtype, "shape": shape, "offset": offset, "size_bytes": size}} if len(value) == 1:
            if dtype not in DTYPES or offset < 0 or offset + size > len(pack):
                raise ValueError(f"the result has a tensor {dtype} at {offset} that its pack has not")
            found = np.frombuffer(pack, np.dtype(dtype).newbyteorder("<"), size // np.dtype(dtype).itemsize, offset)
            return {"data": found.reshape(shape).tolist(), "dtype": dtype, "shape": list(shape)}
        case dict():
            return {key: _read(one, pack) for key, one in value.items()}
        case list():
            return [_read(one, pack) for one in value]
    return value
