"""A loss that the client computes: on logprobs from a forward pass, with its gradient sent in a second pass.

L's gradient with respect to the model's parameters is the sum of dL/dlogp * dlogp/dθ over the target positions, which
is the gradient of `surrogate`, Σ w·logp, for w = dL/dlogp.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weaver.client.outputs import align_training_outputs
from weaver.types import Datum
from weaver.types.tensor import needed_torch

if TYPE_CHECKING:
    import torch

    CustomLoss = Callable[[Sequence[Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """The loss and its metrics, and the data whose pass has the loss's gradient."""

    data: list[Datum]
    loss: "torch.Tensor"
    metrics: dict[str, Any]

    @property
    def answer(self) -> dict[str, Any]:
        return {"loss": self.loss, "metrics": self.metrics}


def surrogate(data: Sequence[Datum], function: "CustomLoss", result: Mapping[str, Any]) -> Surrogate:
    """Compute the user's loss on a forward pass's result.

    Raises RuntimeError where the function fails and ValueError where it returns no scalar that depends on the logprobs.
    """
    torch = needed_torch()
    leaves = [_leaf(output, index, torch) for index, output in enumerate(align_training_outputs(data, result))]
    try:
        loss, metrics = function(data, leaves)
    except Exception as error:
        raise RuntimeError(f"User loss_fn failed: {error}") from error
    if loss.dim() != 0:
        raise ValueError(f"loss_fn must return a scalar loss, got shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("loss_fn must return a loss that depends on the logprobs it was given")
    loss.backward()
    weighted = [_weighted(datum, leaf, torch) for datum, leaf in zip(data, leaves, strict=True)]
    return Surrogate(weighted, loss.detach(), metrics)


def _leaf(output: Any, index: int, torch: Any) -> Any:
    logprobs = output.get("logprobs")
    if logprobs is None:
        raise ValueError(f"loss_fn_outputs[{index}] has no logprobs")
    values = logprobs["data"] if isinstance(logprobs, Mapping) else logprobs
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def _weighted(datum: Datum, leaf: Any, torch: Any) -> Datum:
    """A datum whose logprobs the loss does not depend on adds nothing."""
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    inputs: dict[str, Any] = {"surrogate_weights": gradient}
    if "target_tokens" not in datum.loss_fn_inputs and datum.model_input is not None:
        inputs["target_tokens"] = datum.model_input.to_ints()
    return datum.with_loss_fn_inputs(inputs)
