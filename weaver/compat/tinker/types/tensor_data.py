"""A tensor as Tinker's users hold it: numbers, a dtype and perhaps a shape, dense or as compressed sparse rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weaver.compat.tinker.types.names import TensorDtype
from weaver.compat.tinker.types.sparse_rows import SparseRows, compress, fill_up

if TYPE_CHECKING:
    import torch

_NUMPY: dict[str, Any] = {"float32": np.float32, "int64": np.int64}


@dataclass(frozen=True, eq=False, init=False)
class TensorData:
    """Numbers in one of the two dtypes that the protocol carries.

    `data` is a flat or nested list, or an array, which is kept without a copy when it has the dtype already and may be
    written to. With `sparse_crow_indices` and `sparse_col_indices` the numbers are the entries that differ from a pad
    value, and `shape` is the matrix they belong to. Raises TypeError without a dtype and ValueError for another one.
    """

    dtype: TensorDtype
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None
    _numpy: NDArray[Any] = field(repr=False)  # type: ignore[misc]  # the constructor below is written out

    def __init__(
        self,
        data: Sequence[int] | Sequence[float] | NDArray[Any] | None = None,
        dtype: TensorDtype | None = None,
        shape: list[int] | None = None,
        sparse_crow_indices: list[int] | None = None,
        sparse_col_indices: list[int] | None = None,
    ) -> None:
        if dtype is None:
            raise TypeError("TensorData lacks dtype; pass dtype='int64' or dtype='float32'")
        array = _array(data, _numpy_dtype(dtype))
        if sparse_crow_indices is None and shape is not None and list(array.shape) != shape:
            array = array.reshape(shape)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "sparse_crow_indices", sparse_crow_indices)
        object.__setattr__(self, "sparse_col_indices", sparse_col_indices)
        object.__setattr__(self, "_numpy", array)

    @property
    def data(self) -> list[int] | list[float]:
        """The stored numbers in one flat list: every element, or the named entries of sparse rows."""
        flat: list[int] | list[float] = self._numpy.ravel().tolist()
        return flat

    @classmethod
    def from_numpy(cls, array: NDArray[Any]) -> "TensorData":
        """Floats become float32 and signed integers int64; ValueError for any other kind."""
        kinds: dict[str, TensorDtype] = {"f": "float32", "i": "int64"}
        if array.dtype.kind not in kinds:
            raise ValueError(
                f"TensorData holds floats and signed integers, and dtype {array.dtype} is neither; cast it"
            )
        return cls(data=array, dtype=kinds[array.dtype.kind], shape=list(array.shape))

    @classmethod
    def from_torch(cls, tensor: "torch.Tensor") -> "TensorData":
        """Like `from_numpy`; bfloat16, which numpy has not, is widened to float32 first."""
        return cls.from_numpy(_from_torch(tensor))

    @classmethod
    def from_torch_sparse(cls, tensor: "torch.Tensor", pad_value: int = 0) -> "TensorData":
        """A matrix without its entries equal to `pad_value`, where that takes less room; dense otherwise."""
        pad = _pad(pad_value)
        array = _from_torch(tensor)
        rows = compress(array, pad) if array.ndim == 2 else None
        if rows is None:
            return cls.from_numpy(array)
        return cls(
            data=rows.values_P,
            dtype="float32" if array.dtype.kind == "f" else "int64",
            shape=list(array.shape),
            sparse_crow_indices=rows.crow.tolist(),
            sparse_col_indices=rows.col_P.tolist(),
        )

    def to_numpy(self, pad_value: int = 0) -> NDArray[Any]:
        """The stored array itself; sparse rows are filled up with `pad_value` in a new one."""
        if self.sparse_crow_indices is None:
            return self._numpy
        if self.sparse_col_indices is None or self.shape is None:
            lacking = "shape" if self.sparse_col_indices is not None else "sparse_col_indices"
            raise AssertionError(f"TensorData has sparse_crow_indices but no {lacking}; sparse rows need both")
        crow, col = np.asarray(self.sparse_crow_indices, np.int64), np.asarray(self.sparse_col_indices, np.int64)
        return fill_up(SparseRows(crow, col, self._numpy), self.shape, _pad(pad_value))

    def to_torch(self, pad_value: int = 0) -> "torch.Tensor":
        """A torch tensor over the array that `to_numpy` gives. Raises ImportError without torch."""
        tensor: torch.Tensor = import_module("torch").from_numpy(self.to_numpy(pad_value))
        return tensor

    def tolist(self, pad_value: int = 0) -> list[Any]:
        """The numbers as nested lists in the tensor's shape."""
        nested: list[Any] = self.to_numpy(pad_value).tolist()
        return nested


def _numpy_dtype(dtype: str) -> Any:
    if dtype not in _NUMPY:
        raise ValueError(f"TensorData.dtype is {dtype!r}; it can be 'int64' or 'float32'")
    return _NUMPY[dtype]


def _array(data: Sequence[int] | Sequence[float] | NDArray[Any] | None, dtype: Any) -> NDArray[Any]:
    if data is None:
        return np.empty(0, dtype)
    array = np.asarray(data, dtype)
    # torch warns about arrays that it may not write to.
    return array if array.flags.writeable else array.copy()


def _from_torch(tensor: "torch.Tensor") -> NDArray[Any]:
    widened = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    array: NDArray[Any] = widened.contiguous().numpy()
    return array


def _pad(pad_value: Any) -> int:
    if isinstance(pad_value, bool) or not isinstance(pad_value, int | np.integer):
        raise TypeError(f"pad_value is {pad_value!r}; it has to be an integer")
    return int(pad_value)
