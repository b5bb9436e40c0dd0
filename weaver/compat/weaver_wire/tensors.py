"""Arrays as bodies have them: lists in JSON, arrays in process or out of a tensor pack."""

import math
import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Final

import numpy as np

from weaver.domain import Array, IntArray, TokenRows
from weaver.errors import InvalidInput

DTYPES: Final = ("int64", "int32", "float32", "float64")
TEXT_CHUNK: Final = "encoded_text"


def token_ids(value: object, where: str) -> IntArray:
    """One-dimensional token ids. Raises InvalidInput."""
    array = _array(value, where)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise InvalidInput(f"{where} must be a list of whole numbers")
    return array.astype(np.int64)


def number(value: object, where: str) -> float:
    """A number that a float can hold. Raises InvalidInput."""
    if not isinstance(value, bool) and isinstance(value, int | float):
        with suppress(OverflowError):
            return float(value)
    raise InvalidInput(f"{where} is {reprlib.repr(value)}; it must be a number")


def prompt_ids(model_input: object, where: str) -> IntArray:
    """The tokens of `{"chunks": [{"type": "encoded_text", "tokens": [...]}]}`."""
    if not isinstance(model_input, Mapping) or set(model_input) != {"chunks"}:
        raise InvalidInput(f"{where} must be an object with chunks, and nothing else")
    chunks = model_input["chunks"]
    if not isinstance(chunks, Iterable) or isinstance(chunks, str | bytes | Mapping):
        raise InvalidInput(f"{where}.chunks must be a list")
    parts = [_chunk(chunk, f"{where}.chunks[{index}]") for index, chunk in enumerate(chunks)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def loss_input(value: object, where: str) -> Array:
    """A dense input of a loss: `{"data", "dtype"}`, or the array itself; int64 or float32."""
    if not isinstance(value, Mapping):
        return _plain(_array(value, where), where)
    if not {"data", "dtype"} <= set(value) <= {"data", "dtype", "shape"}:
        raise InvalidInput(f"{where} must be an object with data and dtype")
    if value["dtype"] not in DTYPES:
        raise InvalidInput(f"{where}.dtype is {value['dtype']!r}; this server reads {', '.join(DTYPES)}")
    array = _plain(_array(value["data"], f"{where}.data"), where)
    if "int" in str(value["dtype"]) and array.dtype != np.int64 and array.size:
        raise InvalidInput(f"{where} has dtype {value['dtype']}, but data that are no whole numbers")
    typed: Array = array.astype(np.int64) if "int" in str(value["dtype"]) else array.astype(np.float32)
    return _shaped(typed, value.get("shape"), where)


def token_rows(value: object, where: str) -> TokenRows:
    """A list of token ids for each target. Rows of one length may come as a dense input: a client makes one of them."""
    refused = InvalidInput(f"{where} must be a list of token ids for each target: rows of whole numbers")
    if isinstance(value, Mapping | np.ndarray):
        table = loss_input(value, where)
        if table.ndim != 2 or (table.dtype != np.int64 and table.size):
            raise refused
        return TokenRows(np.arange(len(table) + 1) * table.shape[1], table.reshape(-1).astype(np.int64))
    if not isinstance(value, list | tuple) or any(not isinstance(row, list | tuple) for row in value):
        raise refused
    kinds = set(map(type, chain.from_iterable(value)))
    if bool in kinds or not all(issubclass(kind, int | np.signedinteger) for kind in kinds):
        raise refused
    try:
        return TokenRows.of_lists(value)
    except OverflowError:
        raise refused from None


def _chunk(chunk: object, where: str) -> IntArray:
    if not isinstance(chunk, Mapping) or "tokens" not in chunk or not set(chunk) <= {"type", "tokens"}:
        raise InvalidInput(f"{where} must be an object with type and tokens, and nothing else")
    if chunk.get("type", TEXT_CHUNK) != TEXT_CHUNK:
        raise InvalidInput(f"{where}.type is {chunk['type']!r}: this server reads {TEXT_CHUNK} only")
    return token_ids(chunk["tokens"], f"{where}.tokens")


def _array(value: object, where: str) -> Any:
    """numpy's reading of the value, if it is an array of numbers."""
    refused = InvalidInput(
        f"{where} is no array of numbers that fit in 64 bits; rows of different lengths are not read"
    )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise refused from None
    if array.dtype.kind not in "iuf" and array.size:
        raise refused
    return array


def _plain(array: Any, where: str) -> Array:
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise InvalidInput(f"{where} has a number that does not fit in 64 bits")
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)


def _shaped(array: Array, shape: Any, where: str) -> Array:
    if shape is None:
        return array
    sizes: Any = shape if isinstance(shape, list | tuple) else [None]
    if any(type(size) is not int or size < 0 for size in sizes) or math.prod(sizes) != array.size:
        raise InvalidInput(f"{where}.shape is {reprlib.repr(shape)}, but data has {array.size} numbers")
    return array.reshape(sizes)
