"""Losses that run here, between two passes: the first computes logprobs, the second has the loss's gradient as weights.

The gradient of Σ -weights·logprobs is that of the loss when the weights are -∂loss/∂logprobs.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from weaver.compat.tinker import types
from weaver.compat.tinker.lib.public_interfaces.custom_loss import LossHandle, run_loss_handle

if TYPE_CHECKING:
    import torch

CustomLossFnV1 = Callable[[list[types.Datum], "list[torch.Tensor]"], "tuple[torch.Tensor, dict[str, float]]"]
"""A function of all data and the logprobs of each datum's targets; returns the loss, and metrics to hand on."""

LossFunction = CustomLossFnV1 | LossHandle


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A function's loss, and the data whose cross entropy has its gradient."""

    data: list[types.Datum]
    loss: float
    metrics: Mapping[str, float]

    def finished(self, result: types.ForwardBackwardOutput) -> types.ForwardBackwardOutput:
        """The second pass's result with the loss that was asked for."""
        measured = dict(result.metrics)
        weighted = measured.pop("loss:sum")
        metrics = {**measured, **self.metrics, "loss:sum": self.loss, "surrogate_loss:sum": weighted}
        return replace(result, metrics=metrics)


def check_loss_type_input(loss_type_input: str | None) -> None:
    """Raise ValueError for anything but "logprobs", which needs not be said any more."""
    if loss_type_input is None:
        return
    warnings.warn("loss_type_input will go: losses get logprobs; leave it out", DeprecationWarning, stacklevel=3)
    if loss_type_input != "logprobs":
        raise ValueError(f"loss_type_input is {loss_type_input!r}; custom losses read 'logprobs' only")


def forward_data(data: list[types.Datum]) -> list[types.Datum]:
    """The data of the first pass: targets, and weights, which it does not use but has to have."""
    return [_forward_datum(datum) for datum in data]


def _forward_datum(datum: types.Datum) -> types.Datum:
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        raise ValueError("every datum of a custom loss needs loss_fn_inputs['target_tokens']")
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        weights = types.TensorData.from_numpy(np.zeros(targets.to_numpy().shape, np.float32))
    return replace(datum, loss_fn_inputs={"target_tokens": targets, "weights": weights})


def surrogate(data: list[types.Datum], function: LossFunction, result: types.ForwardBackwardOutput) -> Surrogate:
    """Run the function, and turn its gradient into weights."""
    torch: Any = import_module("torch")
    logprobs = [_leaf(torch, output["logprobs"]) for output in result.loss_fn_outputs]
    if isinstance(function, LossHandle):
        loss, metrics = run_loss_handle(function, data, logprobs)
    else:
        loss, metrics = function(data, logprobs)
    value = float(loss.detach().sum().item())
    loss.backward()
    return Surrogate([_weighted(*pair) for pair in zip(data, logprobs, strict=True)], value, metrics)


def _leaf(torch: Any, output: types.TensorData) -> Any:
    return torch.from_numpy(np.array(output.to_numpy(), np.float32)).requires_grad_(True)


def _weighted(datum: types.Datum, logprobs: Any) -> types.Datum:
    if logprobs.grad is None:
        raise ValueError("No gradient computed for logprob tensor: the loss does not depend on one of the data")
    weights = types.TensorData.from_numpy((-logprobs.grad).numpy())
    return replace(datum, loss_fn_inputs={"target_tokens": datum.loss_fn_inputs["target_tokens"], "weights": weights})
