"""Tinker's tensors as numpy arrays: dense, or compressed sparse rows that are filled up with zeros.

Every error names the tensor as the caller knows it, like `data[3].loss_fn_inputs['weights']`.
"""

import math
import reprlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weaver.compat.tinker.messages import DType
from weaver.domain import Array, IntArray
from weaver.errors import InvalidInput

# A few bytes of sparse rows can declare any size; half a gibibyte of float32 is far beyond any datum.
DENSE_LIMIT: Final = 2**27

_NUMPY: Final[dict[int, Any]] = {DType.FLOAT32: np.float32, DType.INT64: np.int64}


def decode_tensor(message: Any, name: str) -> Array:
    """The tensor in its declared shape; without one it is one-dimensional. Raises InvalidInput."""
    if message.dtype not in _NUMPY:
        raise InvalidInput(f"{name} has dtype {_dtype_name(message.dtype)}; this server reads float32 and int64")
    shape = tuple(message.shape)
    if any(extent < 0 for extent in shape):
        raise InvalidInput(f"{name} declares the shape {list(shape)}; an extent cannot be negative")
    match message.WhichOneof("encoding"):
        case "dense":
            return _decode_dense(message, shape, name)
        case "sparse_csr":
            return _decode_sparse(message, shape, name)
        case _:
            raise InvalidInput(f"{name} has neither dense nor sparse_csr values")


def decode_tokens(raw: bytes, name: str) -> IntArray:
    """int32 token ids, widened."""
    return _numbers(raw, np.int32, name).astype(np.int64)


def sparse_size(message: Any) -> int:
    """How many elements a sparse tensor would have once filled up; 0 for a dense one, which is as long as its bytes."""
    return abs(math.prod(message.shape)) if message.HasField("sparse_csr") else 0


def _dtype_name(number: int) -> str:
    return DType(number).name.lower() if number in set(DType) else str(number)


def _numbers(raw: bytes, dtype: Any, name: str) -> NDArray[Any]:
    """A writable copy in the machine's byte order (torch warns about read-only arrays)."""
    little = np.dtype(dtype).newbyteorder("<")
    if len(raw) % little.itemsize:
        raise InvalidInput(f"{name} has {len(raw)} bytes, which is no whole number of {np.dtype(dtype).name} values")
    return np.frombuffer(raw, little).astype(dtype)


def _decode_dense(message: Any, shape: tuple[int, ...], name: str) -> Array:
    values = _numbers(message.dense, _NUMPY[message.dtype], name)
    if not shape:
        return values
    if math.prod(shape) != values.size:
        raise InvalidInput(f"{name} declares the shape {list(shape)} and carries {values.size} values")
    return _shaped(values, shape, name)


def _shaped(values: Array, shape: tuple[int, ...], name: str) -> Array:
    """Extents can be too many, or beside a 0 too large, for any array."""
    try:
        return values.reshape(shape)
    except ValueError as error:
        raise InvalidInput(f"{name} declares the shape {reprlib.repr(list(shape))}: {error}") from None


def _decode_sparse(message: Any, shape: tuple[int, ...], name: str) -> Array:
    if len(shape) != 2:
        raise InvalidInput(f"{name} is sparse_csr and needs a shape of two extents, not {list(shape)}")
    if math.prod(shape) > DENSE_LIMIT:
        raise InvalidInput(f"{name} declares the shape {list(shape)}: at most {DENSE_LIMIT} elements are read")
    rows, columns = shape
    values = _numbers(message.sparse_csr.values, _NUMPY[message.dtype], name)
    flat = _flat_positions(message.sparse_csr, rows, columns, name)
    if flat.size != values.size:
        raise InvalidInput(f"{name} has {values.size} values for {flat.size} column indices")
    dense = np.zeros(rows * columns, values.dtype)
    dense[flat] = values
    return _shaped(dense, shape, name)


def _flat_positions(csr: Any, rows: int, columns: int, name: str) -> IntArray:
    """Where each value lies in the row-major dense array."""
    starts = _numbers(csr.crow_indices, np.int64, f"{name}.crow_indices")
    column = _numbers(csr.col_indices, np.int64, f"{name}.col_indices")
    return flat_positions(starts, column, (rows, columns), name)


def flat_positions(starts: IntArray, column: IntArray, shape: tuple[int, int], name: str) -> IntArray:
    """Where each value of compressed sparse rows lies in the row-major dense array. Raises InvalidInput."""
    rows, columns = shape
    if starts.size != rows + 1 or starts[0] != 0 or starts[-1] != column.size or (np.diff(starts) < 0).any():
        raise InvalidInput(
            f"{name}.crow_indices must be {rows + 1} ascending row starts, from 0 to the {column.size} of col_indices"
        )
    if ((column < 0) | (column >= columns)).any():
        raise InvalidInput(f"{name}.col_indices must lie from 0 to {columns - 1}")
    flat: IntArray = np.repeat(np.arange(rows, dtype=np.int64), np.diff(starts)) * columns + column
    if np.unique(flat).size != flat.size:
        raise InvalidInput(f"{name}.col_indices names a column twice in one row")
    return flat
