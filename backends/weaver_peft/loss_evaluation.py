"""Call a loss function on one datum's logprobs and take its gradient. It is somebody else's code: trust nothing."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from weaver.backend import Pass
from weaver.errors import InvalidInput, LossFailed, UserError
from weaver.loss import TARGET_TOKENS, LossInput, LossOutput
from weaver.types import Array, FloatArray, ForwardBackwardResult

REDUCTIONS = {"sum", "mean", "min", "max"}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """One datum's loss, its metrics, and d loss / d logprobs (None in a forward-only pass)."""

    loss: float
    metrics: Mapping[str, float]
    gradient: torch.Tensor | None


def evaluate(one: Pass, index: int, logprobs: torch.Tensor) -> Evaluated:
    """The loss of datum `index` at `logprobs`, (T,) or (T, K).

    Raises LossFailed, naming the loss and the datum, when the function raises or returns what cannot be used, and
    InvalidInput where the function says that it is the user's to change.
    """
    datum, blame = one.data[index], f"the loss {one.loss.name!r} failed on data[{index}]"
    leaf = logprobs.detach().clone().requires_grad_(one.backward)
    inputs = {
        declared.name: _input(datum.loss_fn_inputs[declared.name], declared).to(leaf.device)
        for declared in one.loss.inputs
    }
    try:
        with torch.set_grad_enabled(one.backward):
            returned = one.loss.function(leaf, inputs, one.config)
            output = returned if isinstance(returned, LossOutput) else LossOutput(returned)
        loss = _checked(output, blame, needs_gradient=one.backward)
        gradient = torch.autograd.grad(output.loss, leaf)[0] if one.backward else None
    except LossFailed:
        raise
    except UserError as error:
        raise InvalidInput(f"{blame}: {error}") from error
    except Exception as error:
        raise LossFailed(f"{blame}: {type(error).__name__}: {error}") from error
    if gradient is not None and not gradient.isfinite().all():
        raise LossFailed(f"{blame}: its gradient is not finite")
    return Evaluated(loss, output.metrics, gradient)


def _input(array: Array, declared: LossInput) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.reshape(()) if declared.shape == "scalar" else tensor


def _checked(output: LossOutput, blame: str, *, needs_gradient: bool) -> float:
    if not isinstance(output.loss, torch.Tensor) or output.loss.ndim != 0:
        shape = tuple(output.loss.shape) if isinstance(output.loss, torch.Tensor) else type(output.loss).__name__
        raise LossFailed(f"{blame}: it returned {shape}, not a scalar tensor")
    if needs_gradient and not output.loss.requires_grad:
        raise LossFailed(f"{blame}: its value does not depend on the logprobs, so it has no gradient")
    if not output.loss.isfinite():
        raise LossFailed(f"{blame}: its value is {output.loss.item()}")
    for name in output.metrics:
        if name.partition(":")[2] not in REDUCTIONS:
            raise LossFailed(
                f"{blame}: the metric {name!r} is not named 'name:reduction' with one of {sorted(REDUCTIONS)}"
            )
    return float(output.loss.detach())


@dataclass(slots=True)
class PassOutcome:
    """Gathers what the micro-batches find out about one pass."""

    size: int
    logprobs: dict[int, FloatArray] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, index: int, logprobs: torch.Tensor, evaluated: Evaluated) -> None:
        self.logprobs[index] = logprobs.detach().cpu().numpy().copy()
        self.losses[index] = evaluated.loss
        for name, value in evaluated.metrics.items():
            self.metrics[name].append(float(value))

    def result(self) -> ForwardBackwardResult:
        """The sum runs in the order of the data, so that it does not depend on how they were packed."""
        metrics = {"loss:sum": sum(self.losses[index] for index in range(self.size))}
        metrics |= {name: _reduce(name.partition(":")[2], values) for name, values in self.metrics.items()}
        return ForwardBackwardResult(tuple(self.logprobs[index] for index in range(self.size)), metrics)


def _reduce(reduction: str, values: list[float]) -> float:
    match reduction:
        case "sum":
            return sum(values)
        case "mean":
            return sum(values) / len(values)
        case "min":
            return min(values)
        case _:
            return max(values)


def targets_of(one: Pass, index: int) -> torch.Tensor:
    """The target tokens of a datum, always (T, K)."""
    targets = torch.from_numpy(one.data[index].loss_fn_inputs[TARGET_TOKENS])
    return targets if targets.ndim == 2 else targets[:, None]
