"""For backends in torch: call a loss on logprobs and take its gradient. It is somebody else's code: trust nothing.

Shapes: T tokens of one datum, K targets per token.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from weaver.backend import Pass
from weaver.domain import Array, Datum, FloatArray, ForwardBackwardResult
from weaver.errors import InvalidInput, LossFailed, UserError
from weaver.loss import REDUCTIONS, TARGET_TOKENS, LossInput, LossOutput


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """One datum's loss, its metrics and outputs, and d loss / d logprobs (None in a forward-only pass)."""

    loss: float
    metrics: Mapping[str, float]
    outputs: Mapping[str, FloatArray]
    gradient: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedBatch:
    """The loss of all data of a pass; outputs and gradients are one for each datum, in order."""

    loss: float
    metrics: Mapping[str, float]
    outputs: Sequence[Mapping[str, FloatArray]]
    gradients: Sequence[torch.Tensor | None]


def evaluate(one: Pass, index: int, logprobs: torch.Tensor) -> Evaluated:
    """The loss of datum `index` at `logprobs`, (T,) or (T, K).

    Raises LossFailed, naming the loss, its package and the datum, when the function raises or returns what cannot be
    used, and InvalidInput where the function says that it is the user's to change.
    """
    blame = f"{one.loss.blamed} failed on data[{index}]"
    leaf, inputs = _given(one, one.data[index], logprobs)
    with _blaming(blame), torch.set_grad_enabled(one.backward):
        output = _output(_call(one, leaf, inputs))
        loss = _checked(output, blame, needs_gradient=one.backward)
        gradient = torch.autograd.grad(output.loss, leaf)[0] if one.backward else None
    _check_finite(gradient, blame)
    outputs = _named_outputs(one, blame, output)
    return Evaluated(loss, output.metrics, _outputs(one, one.data[index], outputs, blame), gradient)


def evaluate_batch(one: Pass, logprobs: Sequence[torch.Tensor]) -> EvaluatedBatch:
    """The loss of all data of a pass whose loss sees the batch, at the logprobs of each, (T,) or (T, K).

    Raises like `evaluate`; a gradient that is not finite is told with the datum's index.
    """
    blame = f"{one.loss.blamed} failed on the batch data[0] to data[{len(one.data) - 1}]"
    given = [_given(one, datum, found) for datum, found in zip(one.data, logprobs, strict=True)]
    leaves = [leaf for leaf, _ in given]
    with _blaming(blame), torch.set_grad_enabled(one.backward):
        output = _output(_call(one, leaves, [inputs for _, inputs in given]))
        loss = _checked(output, blame, needs_gradient=one.backward)
        found = torch.autograd.grad(output.loss, leaves, allow_unused=True) if one.backward else [None] * len(leaves)
    gradients = [
        torch.zeros_like(leaf) if one.backward and gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]
    for index, gradient in enumerate(gradients):
        _check_finite(gradient, f"{one.loss.blamed} failed on data[{index}] of its batch")
    named = _named_outputs(one, blame, output)
    for name, values in named.items():
        if not isinstance(values, Sequence) or len(values) != len(one.data):
            raise LossFailed(f"{blame}: its output {name!r} is not a list with one tensor for each datum")
    outputs = []
    for index, datum in enumerate(one.data):
        here = {name: values[index] for name, values in named.items()}
        outputs.append(_outputs(one, datum, here, f"{one.loss.blamed} failed on data[{index}] of its batch"))
    return EvaluatedBatch(loss, output.metrics, outputs, gradients)


@contextmanager
def _blaming(blame: str) -> Iterator[None]:
    """Whatever a loss raises becomes that operation's failure, and says whose it is."""
    try:
        yield
    except LossFailed:
        raise
    except UserError as error:
        raise InvalidInput(f"{blame}: {error}") from error
    except Exception as error:
        raise LossFailed(f"{blame}: {type(error).__name__}: {error}") from error


def _given(one: Pass, datum: Datum, logprobs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a function gets: copies that it may ruin, of the inputs that are there."""
    leaf = logprobs.detach().clone().requires_grad_(one.backward)
    arrays = datum.loss_fn_inputs
    inputs = {
        declared.name: _input(arrays[declared.name], declared).to(leaf.device)
        for declared in one.loss.inputs
        if not declared.optional or declared.name in arrays
    }
    return leaf, inputs


def _call(one: Pass, logprobs: Any, inputs: Any) -> object:
    function: Any = one.loss.function
    return function(logprobs, inputs, dict(one.config))


def _input(array: Array, declared: LossInput) -> torch.Tensor:
    tensor = torch.from_numpy(array).clone()
    return tensor.reshape(()) if declared.shape == "scalar" else tensor


def _output(returned: object) -> LossOutput:
    return returned if isinstance(returned, LossOutput) else LossOutput(returned)


def _checked(output: LossOutput, blame: str, *, needs_gradient: bool) -> float:
    if not isinstance(output.loss, torch.Tensor) or output.loss.ndim != 0:
        shape = tuple(output.loss.shape) if isinstance(output.loss, torch.Tensor) else type(output.loss).__name__
        raise LossFailed(f"{blame}: it returned {shape}, not a scalar tensor")
    if needs_gradient and not output.loss.requires_grad:
        raise LossFailed(f"{blame}: its value does not depend on the logprobs, so it has no gradient")
    if not output.loss.isfinite():
        raise LossFailed(f"{blame}: its value is {output.loss.item()}")
    for name, value in output.metrics.items():
        float(value)
        if name.partition(":")[2] not in REDUCTIONS:
            raise LossFailed(
                f"{blame}: the metric {name!r} is not named 'name:reduction' with one of {sorted(REDUCTIONS)}"
            )
    return float(output.loss.detach())


def _check_finite(gradient: torch.Tensor | None, blame: str) -> None:
    if gradient is not None and not gradient.isfinite().all():
        raise LossFailed(f"{blame}: its gradient is not finite")


def _named_outputs(one: Pass, blame: str, output: LossOutput) -> Mapping[str, Any]:
    declared = {field.name for field in one.loss.outputs}
    if output.outputs.keys() != declared:
        raise LossFailed(f"{blame}: it returned the outputs {sorted(output.outputs)}; declared are {sorted(declared)}")
    return output.outputs


def _outputs(one: Pass, datum: Datum, found: Mapping[str, object], blame: str) -> dict[str, FloatArray]:
    """The declared outputs of one datum as arrays, each of its declared shape."""
    targets, arrays = datum.loss_fn_inputs[TARGET_TOKENS], {}
    shapes = {"target": targets.shape, "token": targets.shape[:1], "scalar": (1,)}
    for declared in one.loss.outputs:
        value, wanted = found[declared.name], shapes[declared.shape]
        if not isinstance(value, torch.Tensor):
            raise LossFailed(f"{blame}: its output {declared.name!r} is a {type(value).__name__}, not a tensor")
        array = value.detach().float().cpu().numpy().copy()
        if declared.shape == "scalar" and array.size == 1:
            array = array.reshape(1)
        if array.shape != wanted:
            raise LossFailed(f"{blame}: its output {declared.name!r} has shape {array.shape}; it must be {wanted}")
        arrays[declared.name] = array
    return arrays


@dataclass(slots=True)
class PassOutcome:
    """Gathers what the micro-batches find out about one pass, in whatever order they come."""

    size: int
    logprobs: dict[int, FloatArray] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[int, Mapping[str, FloatArray]] = field(default_factory=dict)

    def add_logprobs(self, index: int, logprobs: torch.Tensor) -> None:
        self.logprobs[index] = logprobs.detach().cpu().numpy().copy()

    def add(self, index: int, evaluated: Evaluated) -> None:
        """The loss of one datum."""
        self.losses[index], self.outputs[index] = evaluated.loss, evaluated.outputs
        self._add_metrics(evaluated.metrics)

    def add_batch(self, evaluated: EvaluatedBatch) -> None:
        """The loss of all data together."""
        self.losses, self.outputs = {0: evaluated.loss}, dict(enumerate(evaluated.outputs))
        self._add_metrics(evaluated.metrics)

    def result(self) -> ForwardBackwardResult:
        """The sum runs in the order of the data, so that it does not depend on how they were packed."""
        metrics = {"loss:sum": sum(self.losses[index] for index in sorted(self.losses))}
        metrics |= {name: _reduce(name.partition(":")[2], values) for name, values in self.metrics.items()}
        order = range(self.size)
        return ForwardBackwardResult(
            tuple(self.logprobs[index] for index in order), metrics, tuple(self.outputs[index] for index in order)
        )

    def _add_metrics(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.metrics[name].append(float(value))


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


def shaped_logprobs(one: Pass, index: int, logprobs_TK: torch.Tensor) -> torch.Tensor:
    """The logprobs of a datum in the rank of its targets, (T,) or (T, K)."""
    return logprobs_TK[:, 0] if one.data[index].loss_fn_inputs[TARGET_TOKENS].ndim == 1 else logprobs_TK
