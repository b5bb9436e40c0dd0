"""Tensors as users have them, and as they travel: one list and the name of its type."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from weaver.config import prepare_threads
from weaver.errors import MissingPackage

if TYPE_CHECKING:
    import torch

__all__ = ["TensorData", "tensor_payload"]

DTYPES: Final = ("int64", "int32", "float32", "float64")
Array = npt.NDArray[Any]


@lru_cache(maxsize=1)
def torch_if_there() -> Any:
    """The module, or None where it is not installed: a client of a server needs none."""
    if find_spec("torch") is None:
        return None
    prepare_threads()
    return import_module("torch")


def needed_torch() -> Any:
    """Raises MissingPackage with the command that installs it."""
    found = torch_if_there()
    if found is None:
        raise MissingPackage("tensors need torch: pip install 'weaver-train[peft]'")
    return found


def tensor(values: Any) -> Any:
    """A tensor over these values; an array where torch is not installed. Shares memory where it can."""
    if isinstance(values, TensorData):
        return values.to_tensor() if torch_if_there() is not None else np.array(values.data, values.dtype)
    found = torch_if_there()
    return np.asarray(values) if found is None else found.as_tensor(values)


def array(values: Any, dtype: str | None = None) -> Array:
    """A copy as it travels: numbers with a point are float32, all others int64, unless `dtype` says otherwise.

    Raises TypeError for what has no such numbers.
    """
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"Unsupported dtype {dtype!r}: it must be one of {', '.join(sorted(DTYPES))}")
    found = _as_array(values)
    if dtype is None:
        if found.dtype.kind not in "fiub":
            raise TypeError(f"Unsupported dtype for tensor payload: {found.dtype}")
        dtype = "float32" if found.dtype.kind == "f" else "int64"
    if found.dtype.kind == "u" and found.size and int(found.max()) > np.iinfo(np.int64).max:
        raise TypeError(f"Unsupported value for tensor payload: {found.max()} does not fit in int64")
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, which its reader refuses by name
        return found.astype(dtype)


def _as_array(values: Any) -> Array:
    if isinstance(values, TensorData):
        return np.array(values.data, values.dtype)
    if hasattr(values, "detach"):  # a tensor; bfloat16 has no counterpart in numpy
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


@dataclass(slots=True)
class TensorData:
    """Numbers as they travel."""

    data: list[object]
    dtype: str

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {"data": self.data, "dtype": self.dtype}

    @classmethod
    def from_array(cls, values: "torch.Tensor | Array | Sequence[Any]", dtype: str | None = None) -> "TensorData":
        """Numbers with a point become float32, all others int64, unless `dtype` says otherwise."""
        found = array(values, dtype)
        return cls(data=found.tolist(), dtype=str(found.dtype))

    def to_tensor(self) -> "torch.Tensor":
        """Raises TypeError for a type that no tensor travels in, and MissingPackage without torch."""
        if self.dtype not in DTYPES:
            raise TypeError(f"Unsupported dtype {self.dtype!r}: it must be one of {', '.join(sorted(DTYPES))}")
        library = needed_torch()
        made: torch.Tensor = library.as_tensor(self.data, dtype=getattr(library, self.dtype))
        return made


def tensor_payload(values: "torch.Tensor | Array | Sequence[Any]", dtype: str | None = None) -> TensorData:
    """What `Datum` takes as a loss input."""
    return TensorData.from_array(values, dtype)
