"""Compressed sparse rows in numpy: where a matrix differs from one value, and the matrix again.

R rows, C columns, P the entries present.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """The entries of row r are those from `crow[r]` up to `crow[r + 1]`, in ascending columns."""

    crow: NDArray[np.int64]
    col_P: NDArray[np.int64]
    values_P: NDArray[Any]


def compress(matrix_RC: NDArray[Any], pad_value: int) -> SparseRows | None:
    """The entries that are not `pad_value`; None where naming them takes no less room than the matrix."""
    present_RC = matrix_RC != pad_value
    rows, _ = matrix_RC.shape
    if rows + 1 + 2 * int(np.count_nonzero(present_RC)) >= matrix_RC.size:
        return None
    crow = np.zeros(rows + 1, np.int64)
    np.cumsum(np.count_nonzero(present_RC, axis=1), out=crow[1:])
    _, col_P = np.nonzero(present_RC)
    return SparseRows(crow, col_P.astype(np.int64), matrix_RC[present_RC])


def fill_up(rows: SparseRows, shape: list[int], pad_value: int) -> NDArray[Any]:
    """The matrix of `shape` with `pad_value` wherever no entry is. Raises RuntimeError for indices that do not fit."""
    _check(rows, shape)
    matrix_RC = np.full(shape, pad_value, rows.values_P.dtype)
    row_P = np.repeat(np.arange(shape[0]), np.diff(rows.crow))
    matrix_RC[row_P, rows.col_P] = rows.values_P
    return matrix_RC


def _check(rows: SparseRows, shape: list[int]) -> None:
    entries = rows.values_P.size
    if len(shape) != 2 or min(shape) < 0:
        raise RuntimeError(f"sparse rows need a shape of two extents, and shape is {shape}")
    if rows.values_P.ndim != 1 or rows.col_P.shape != (entries,):
        raise RuntimeError(f"sparse_col_indices has {rows.col_P.size} entries, and data has {entries}")
    if rows.crow.shape != (shape[0] + 1,) or rows.crow[0] != 0 or rows.crow[-1] != entries:
        raise RuntimeError(
            f"sparse_crow_indices has to be {shape[0] + 1} numbers from 0 to {entries}, the number of entries in data"
        )
    if (np.diff(rows.crow) < 0).any():
        raise RuntimeError("sparse_crow_indices decreases")
    if entries and (rows.col_P.min() < 0 or rows.col_P.max() >= shape[1]):
        raise RuntimeError(f"sparse_col_indices names a column outside of 0 to {shape[1] - 1}")
    follows = np.diff(rows.col_P) > 0
    starts = rows.crow[1:-1]
    follows[starts[(starts > 0) & (starts < entries)] - 1] = True
    if not follows.all():
        raise RuntimeError("sparse_col_indices has to ascend without repeats within each row")
