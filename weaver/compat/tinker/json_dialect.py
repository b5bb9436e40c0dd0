"""The passes of SDKs before 0.25, which are JSON: read as the protobuf message that says the same.

So one decoder (`convert.forward_backward`) knows what a datum is, and both dialects mean and refuse the same.
What a datum got later, like its spans, has no JSON and is refused by name, as any field is that nobody reads.
"""

from typing import Annotated, Any, Final

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from weaver import domain
from weaver.compat.tinker import convert, messages, requests
from weaver.compat.tinker.messages import DType
from weaver.compat.tinker.requests import Computing
from weaver.errors import InvalidInput

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]

_DTYPES: Final = {"float32": DType.FLOAT32, "int64": DType.INT64}
_LITTLE: Final = {"float32": "<f4", "int64": "<i8"}


def _check_values(values: Any) -> Any:
    """These SDKs write NaN and infinity as null; a number in its place would train silently."""
    if not isinstance(values, list):
        raise PydanticCustomError("refused", "must be a flat list of numbers")
    for index, value in enumerate(values):
        if type(value) is not float and type(value) is not int:
            found = "null, which is how JSON has NaN and infinity" if value is None else f"a {type(value).__name__}"
            context = {"index": index, "found": found}
            raise PydanticCustomError("refused", "holds {found}, at {index}: give finite numbers only", context)
    return values


class JsonTensor(Computing):
    """Dense, or with both index lists in compressed sparse rows. `data` is flat in either case."""

    data: Annotated[list[Any], BeforeValidator(_check_values)]
    dtype: Annotated[str, requests.refused("this server reads float32 and int64", *_DTYPES)]
    shape: list[Int64] | None = None
    sparse_crow_indices: list[Int64] | None = None
    sparse_col_indices: list[Int64] | None = None


class JsonDatum(Computing):
    model_input: requests.Prompt
    loss_fn_inputs: dict[str, JsonTensor] = Field(default_factory=dict)


class Pass(Computing):
    data: list[JsonDatum]
    loss_fn: str
    loss_fn_config: dict[str, float] = Field(default_factory=dict)


class ForwardBackward(requests.ModelOperation):
    forward_backward_input: Pass


class Forward(requests.ModelOperation):
    forward_input: Pass


def forward_backward(request: ForwardBackward) -> domain.ForwardBackward:
    return convert.forward_backward(_message(request.forward_backward_input, forward_only=False))


def forward(request: Forward) -> domain.ForwardBackward:
    return convert.forward_backward(_message(request.forward_input, forward_only=True))


def _message(asked: Pass, *, forward_only: bool) -> Any:
    """The ForwardBackwardRequest that says the same, but for the model and its number."""
    message = messages.ForwardBackwardRequest(
        loss_fn=asked.loss_fn, loss_fn_config=asked.loss_fn_config, forward_only=forward_only
    )
    for index, datum in enumerate(asked.data):
        _add_datum(message, datum, f"data[{index}]")
    return message


def _add_datum(message: Any, datum: JsonDatum, name: str) -> None:
    added = message.data.add()
    for chunk in datum.model_input.chunks:
        added.model_input.add().encoded_text.tokens = np.array(chunk.tokens, "<i4").tobytes()
    for key, tensor in datum.loss_fn_inputs.items():
        added.loss_fn_inputs[key].CopyFrom(_tensor(tensor, f"{name}.loss_fn_inputs[{key!r}]"))


def _tensor(tensor: JsonTensor, name: str) -> Any:
    message = messages.Tensor(dtype=_DTYPES[tensor.dtype], shape=tensor.shape)
    match tensor.sparse_crow_indices, tensor.sparse_col_indices:
        case None, None:
            message.dense = _values(tensor, name)
        case list(row_starts), list(columns):
            message.sparse_csr.values = _values(tensor, name)
            message.sparse_csr.crow_indices = np.array(row_starts, "<i8").tobytes()
            message.sparse_csr.col_indices = np.array(columns, "<i8").tobytes()
        case _:
            raise InvalidInput(f"{name} needs sparse_crow_indices and sparse_col_indices both, or neither")
    return message


def _values(tensor: JsonTensor, name: str) -> bytes:
    if tensor.dtype == "int64":
        for value in tensor.data:
            if type(value) is float:
                raise InvalidInput(f"{name} has dtype int64 and holds {value}: write whole numbers without a point")
    try:
        with np.errstate(over="ignore"):  # infinite beyond float32's range, which is refused with its name like any
            return np.array(tensor.data, _LITTLE[tensor.dtype]).tobytes()
    except OverflowError:
        raise InvalidInput(f"{name} holds a number that does not fit in {tensor.dtype}") from None
