"""For backends in torch: call a loss on logprobs, and on entropies where it wants them, and take its gradient. It is
somebody else's code: trust nothing.

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
from weaver.loss import ENTROPY, REDUCTIONS, TARGET_TOKENS, LossInput, LossOutput

ScoreGradients = tuple[torch.Tensor | None, torch.Tensor | None]
"""d loss / d logprobs and d loss / d entropy of one datum; None where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """One datum's loss, its metrics and outputs, and d loss / d logprobs (None in a forward-only pass); where the loss
    wants entropies, d loss / d entropy too, (T,)."""

    loss: float
    metrics: Mapping[str, float]
    outputs: Mapping[str, FloatArray]
    gradient: torch.Tensor | None
    entropy_gradient: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedBatch:
    """The loss of all data of a pass; outputs and gradients are one for each datum, in order."""

    loss: float
    metrics: Mapping[str, float]
    outputs: Sequence[Mapping[str, FloatArray]]
    gradients: Sequence[torch.Tensor | None]
    entropy_gradients: Sequence[torch.Tensor | None] = ()

    @property
    def by_datum(self) -> list[ScoreGradients]:
        return list(zip(self.gradients, self.entropy_gradients, strict=True))


def evaluate(one: Pass, index: int, logprobs: torch.Tensor, entropy_T: torch.Tensor | None = None) -> Evaluated:
    """The loss of datum `index` at `logprobs`, (T,) or (T, K), and at `entropy_T` where the pass wants entropies.

    Raises LossFailed, naming the loss, its package and the datum, when the function raises or returns what cannot be
    used, and InvalidInput where the function says that it is the user's to change.
    """
    blame = f"{one.loss.blamed} failed on data[{index}]"
    leaf, inputs = _given(one, index, logprobs, entropy_T)
    leaves = [leaf, inputs[ENTROPY]] if one.wants_entropy else [leaf]
    with _blaming(blame), torch.set_grad_enabled(one.backward):
        output = _output(_call(one, leaf, inputs))
        loss = _checked(output, blame, needs_gradient=one.backward)
        gradients = _gradients(one, output, leaves, allow_unused=one.wants_entropy)
    for gradient in gradients:
        _check_finite(gradient, blame)
    outputs = _named_outputs(one, blame, output)
    return Evaluated(loss, output.metrics, _outputs(one, one.data[index], outputs, blame), *gradients)


def evaluate_batch(
    one: Pass, logprobs: Sequence[torch.Tensor], entropies: Sequence[torch.Tensor | None] = ()
) -> EvaluatedBatch:
    """The loss of all data of a pass whose loss sees the batch, at the logprobs of each, (T,) or (T, K), and at the
    entropies of each, (T,), where the pass wants them.

    Raises like `evaluate`; a gradient that is not finite is told with the datum's index.
    """
    size = len(one.data)
    blame = f"{one.loss.blamed} failed on the batch data[0] to data[{size - 1}]"
    scores = zip(logprobs, entropies or [None] * size, strict=True)
    given = [_given(one, index, *found) for index, found in enumerate(scores)]
    leaves = [leaf for leaf, _ in given]
    leaves += [inputs[ENTROPY] for _, inputs in given if one.wants_entropy]
    with _blaming(blame), torch.set_grad_enabled(one.backward):
        output = _output(_call(one, leaves[:size], [inputs for _, inputs in given]))
        loss = _checked(output, blame, needs_gradient=one.backward)
        gradients = _gradients(one, output, leaves, allow_unused=True)
    for number, gradient in enumerate(gradients):
        _check_finite(gradient, f"{one.loss.blamed} failed on data[{number % size}] of its batch")
    named = _named_outputs(one, blame, output)
    for name, values in named.items():
        if not isinstance(values, Sequence) or len(values) != len(one.data):
            raise LossFailed(f"{blame}: its output {name!r} is not a list with one tensor for each datum")
    outputs = []
    for index, datum in enumerate(one.data):
        here = {name: values[index] for name, values in named.items()}
        outputs.append(_outputs(one, datum, here, f"{one.loss.blamed} failed on data[{index}] of its batch"))
    by_entropy = gradients[size:] if one.wants_entropy else [None] * size
    return EvaluatedBatch(loss, output.metrics, outputs, gradients[:size], by_entropy)


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


def _given(
    one: Pass, index: int, logprobs: torch.Tensor, entropy_T: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a function gets: copies that it may ruin, of the inputs that are there."""
    leaf = logprobs.detach().clone().requires_grad_(one.backward)
    arrays = one.data[index].loss_fn_inputs
    inputs = {
        declared.name: _input(arrays[declared.name], declared).to(leaf.device)
        for declared in one.loss.inputs_of(arrays)
        if not declared.optional or declared.name in arrays
    }
    if one.wants_entropy:
        if entropy_T is None:
            raise InvalidInput(f"{one.loss.blamed} wants entropies by its config, and this backend computes none")
        inputs[ENTROPY] = entropy_T.detach().clone().requires_grad_(one.backward)
    return leaf, inputs


def _gradients(
    one: Pass, output: LossOutput, leaves: Sequence[torch.Tensor], *, allow_unused: bool
) -> list[torch.Tensor | None]:
    """d loss by each leaf, zero where it does not depend on it; None of a pass without a backward part."""
    if not one.backward:
        return [None] * len(leaves)
    found = torch.autograd.grad(output.loss, leaves, allow_unused=allow_unused)
    return [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)]


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
    entropies: dict[int, FloatArray] = field(default_factory=dict)

    def add_logprobs(self, index: int, logprobs: torch.Tensor, entropy_T: torch.Tensor | None = None) -> None:
        self.logprobs[index] = logprobs.detach().cpu().numpy().copy()
        if entropy_T is not None:
            self.entropies[index] = entropy_T.detach().cpu().numpy().copy()

    def scores(self, device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Logprobs and entropies of all data, for `evaluate_batch`."""
        logprobs = [torch.from_numpy(self.logprobs[index]).to(device) for index in range(self.size)]
        entropies = [self.entropies.get(index) for index in range(self.size)]
        return logprobs, [None if each is None else torch.from_numpy(each).to(device) for each in entropies]

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
