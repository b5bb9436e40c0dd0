"""The binary transport: a JSON body and the arrays it names, in one multipart request.

Two parts in this order, `manifest` and `tensor_pack`. In the manifest's body `{"$tensor": {dtype, shape, offset,
size_bytes}}` stands for an array: little-endian, in C order, at that offset of the pack as it is uncompressed.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from pydantic_core import from_json

from weaver.compat.tinker.routes.bodies import BODY_LIMIT, decompress
from weaver.compat.weaver_wire.tensors import DTYPES
from weaver.errors import InvalidInput

TENSOR: Final = "$tensor"
_BOUNDARY: Final = re.compile(r'multipart/form-data;.*boundary="?([^";]+)"?', re.IGNORECASE)


def is_pack(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/form-data")


def body_of_pack(content_type: str, raw: bytes) -> dict[str, Any]:
    """The JSON body with arrays in place of their descriptions. Raises InvalidInput."""
    manifest_part, pack = _parts(content_type, raw)
    manifest = _object(_json(manifest_part), "manifest")
    if manifest.get("version") != 1:
        raise InvalidInput(f"manifest.version is {manifest.get('version')!r}; this server reads 1")
    request = _object(manifest.get("request"), "manifest.request")
    decoded = _decoded(_object(manifest.get("tensor_pack"), "manifest.tensor_pack"), pack)
    return {name: _filled(value, decoded, name) for name, value in request.items()}


def _parts(content_type: str, raw: bytes) -> tuple[bytes, bytes]:
    """The contents of the two parts."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise InvalidInput(f"Content-Type is {content_type!r}; it must name a boundary")
    marker = b"--" + found[1].encode()
    if not raw.startswith(marker + b"\r\n") or not raw.endswith(b"\r\n" + marker + b"--\r\n"):
        raise InvalidInput("the multipart body does not begin and end with its boundary")
    inner = raw[len(marker) + 2 : -len(marker) - 6]
    first, separator, second = inner.partition(b"\r\n" + marker + b"\r\n")
    if not separator:
        raise InvalidInput("the multipart body must have two parts, manifest and tensor_pack")
    return _content(first, "manifest"), _content(second, "tensor_pack")


def _content(part: bytes, name: str) -> bytes:
    headers, separator, content = part.partition(b"\r\n\r\n")
    if not separator or f'name="{name}"'.encode() not in headers:
        raise InvalidInput(f"the multipart body has no part {name!r} in its place")
    return content


def _json(text: bytes) -> object:
    try:
        return from_json(text)
    except ValueError as error:
        raise InvalidInput(f"manifest is no JSON: {error}") from None


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} must be an object")
    return value


def _decoded(told: Mapping[str, Any], pack: bytes) -> bytes:
    """The pack, uncompressed, when it is what the manifest says."""
    if told.get("size_bytes") != len(pack):
        raise InvalidInput(f"tensor_pack has {len(pack)} bytes, its size_bytes is {told.get('size_bytes')!r}")
    if told.get("sha256") != hashlib.sha256(pack).hexdigest():
        raise InvalidInput("tensor_pack differs from its sha256; it was damaged on its way")
    match told.get("codec", "raw"):
        case "raw":
            decoded = pack
        case "zstd":
            decoded = decompress(pack, BODY_LIMIT)
        case codec:
            raise InvalidInput(f"tensor_pack.codec is {codec!r}; this server reads raw and zstd")
    if told.get("decoded_size_bytes", len(decoded)) != len(decoded):
        raise InvalidInput(f"tensor_pack has {len(decoded)} bytes uncompressed, not its decoded_size_bytes")
    return decoded


def _filled(value: Any, pack: bytes, where: str) -> Any:
    """The value with its arrays in their places."""
    match value:
        case {"$tensor": described}:
            return _array(_object(described, where), pack, where)
        case dict():
            return {name: _filled(one, pack, f"{where}.{name}") for name, one in value.items()}
        case list():
            return [_filled(one, pack, f"{where}[{index}]") for index, one in enumerate(value)]
    return value


def _array(described: Mapping[str, Any], pack: bytes, where: str) -> Any:
    dtype, shape, offset, size = (described.get(name) for name in ("dtype", "shape", "offset", "size_bytes"))
    if dtype not in DTYPES or described.get("codec", "raw") != "raw" or described.get("format") != "raw-tensor":
        raise InvalidInput(f"{where}: an array of the pack is a raw-tensor of {', '.join(DTYPES)}, with the codec raw")
    sizes: Any = [*(shape if isinstance(shape, list) else [None]), offset, size]
    if any(type(number) is not int or number < 0 for number in sizes):
        raise InvalidInput(f"{where}: shape, offset and size_bytes must be whole numbers from 0 on")
    *shape, offset, size = sizes
    kind = np.dtype(dtype).newbyteorder("<")
    if math.prod(shape) * kind.itemsize != size or offset + size > len(pack):
        raise InvalidInput(f"{where}: an array of {shape} {dtype} at {offset}, {size} bytes, is not in the pack")
    return np.frombuffer(pack, kind, math.prod(shape), offset).reshape(shape)
