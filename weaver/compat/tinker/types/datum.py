"""One training example: what the model reads and what the loss reads."""

import sys
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

import numpy as np

from weaver.compat.tinker.types.model_input import ModelInput
from weaver.compat.tinker.types.names import TensorDtype
from weaver.compat.tinker.types.provenance_spans import PromptProvenanceSpan, ProvenanceSpans, SampledProvenanceSpan
from weaver.compat.tinker.types.tensor_data import TensorData

LossFnInputs: TypeAlias = dict[str, TensorData]
LossFnOutput: TypeAlias = dict[str, TensorData]

# A list has no dtype of its own: these inputs are known, any other has to come as an array or a tensor.
LIST_DTYPES: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}
_SPARSE = frozenset({"target_tokens", "weights"})


@dataclass(frozen=True)
class Datum:
    """A sequence and the loss's inputs for it, which may also be given as lists, numpy arrays or torch tensors.

    Spans say which sampled sequences the tokens come from; `with_provenance` attaches both lists at once.
    Raises KeyError for a list under an unknown name, ValueError for a ragged or unreadable one, TypeError otherwise.
    """

    model_input: ModelInput
    loss_fn_inputs: LossFnInputs = field(default_factory=dict)
    model_input_spans: ProvenanceSpans | None = None
    loss_fn_input_spans: ProvenanceSpans | None = None

    def __post_init__(self) -> None:
        inputs = {name: as_tensor_data(name, value) for name, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", inputs)
        _check_spans("model_input_spans", self.model_input_spans)
        _check_spans("loss_fn_input_spans", self.loss_fn_input_spans)
        if (self.model_input_spans is None) != (self.loss_fn_input_spans is None):
            raise AssertionError("set model_input_spans and loss_fn_input_spans, or neither; with_provenance sets both")

    def with_provenance(self, model_input: ProvenanceSpans, loss_fn_inputs: ProvenanceSpans) -> Self:
        """This datum with spans that cover `model_input` and `target_tokens` exactly. Raises ValueError otherwise."""
        _check_cover("model_input", model_input, self.model_input.length)
        targets = self.loss_fn_inputs.get("target_tokens")
        if targets is not None and targets.shape is not None and len(targets.shape) == 1:
            _check_cover("loss_fn_inputs", loss_fn_inputs, targets.shape[0])
        return replace(self, model_input_spans=model_input, loss_fn_input_spans=loss_fn_inputs)


def as_tensor_data(name: str, value: Any) -> TensorData:
    """The loss input `name` in the protocol's dtypes; matrices of torch that are mostly zeros become sparse rows."""
    if isinstance(value, TensorData):
        return value
    if isinstance(value, np.ndarray):
        return TensorData.from_numpy(value)
    if isinstance(value, list):
        return _from_list(name, value)
    # Nobody holds a torch tensor who has not imported torch, so there is no need to do it here.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        sparse = name in _SPARSE and value.ndim == 2
        return TensorData.from_torch_sparse(value) if sparse else TensorData.from_torch(value)
    raise TypeError(
        f"loss_fn_inputs[{name!r}] is a {type(value).__name__}; pass a TensorData, list, numpy array or torch tensor"
    )


def _from_list(name: str, values: list[Any]) -> TensorData:
    nested = any(isinstance(value, list) for value in values)
    ragged = f"loss_fn_inputs[{name!r}] is not a rectangle of numbers; nested lists need one length on each level"
    try:
        array = np.asarray(values)
    except ValueError as error:
        if nested:
            raise ValueError(ragged) from error
        raise
    numbers = array.dtype.kind in "fiu"
    if nested and not numbers:
        raise ValueError(ragged)
    if name not in LIST_DTYPES:
        raise KeyError(
            f"loss_fn_inputs[{name!r}] is a list, which has no dtype; pass a numpy array "
            f"(lists are read for {', '.join(LIST_DTYPES)})"
        )
    dtype = LIST_DTYPES[name]
    if numbers:
        return TensorData.from_numpy(array.astype(np.dtype(dtype)))
    return TensorData(data=values, dtype=dtype, shape=[len(values)])


def _check_spans(field_name: str, spans: ProvenanceSpans | None) -> None:
    for position, span in enumerate(spans or []):
        if not isinstance(span, PromptProvenanceSpan | SampledProvenanceSpan):
            raise TypeError(
                f"{field_name}[{position}] is a {type(span).__name__}; "
                "it has to be a PromptProvenanceSpan or a SampledProvenanceSpan"
            )


def _check_cover(field_name: str, spans: ProvenanceSpans, length: int) -> None:
    covered = sum(span.length for span in spans)
    if covered != length:
        raise ValueError(f"with_provenance: the spans of {field_name} cover {covered} positions, and it has {length}")
