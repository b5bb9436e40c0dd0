"""What a check does to a fresh model, as values: two recipes that must come out the same are two tuples of these."""

from dataclasses import dataclass, replace

import numpy as np
import tinker
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOWEST_TOKEN, TOKENS = 20, 64
"""Token ids that every vocabulary has: above the usual special tokens, below the smallest test model's size."""

LARGE_EPS = 1e6
"""Far above every gradient, so that AdamW's division by sqrt(v) + eps is one by a constant."""


@dataclass(frozen=True, slots=True)
class Example:
    """One datum. `inputs` are the loss's arrays, one value per target; `targets` may have several per token."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...] | tuple[tuple[int, ...], ...]
    inputs: tuple[tuple[str, tuple[float, ...] | tuple[tuple[float, ...], ...]], ...]

    def datum(self) -> tinker.Datum:
        """The SDK's spelling."""
        arrays = {name: tinker.TensorData.from_numpy(np.array(values, np.float32)) for name, values in self.inputs}
        arrays["target_tokens"] = tinker.TensorData.from_numpy(np.array(self.targets, np.int64))
        return tinker.Datum(model_input=tinker.ModelInput.from_ints(list(self.tokens)), loss_fn_inputs=arrays)

    def reading(self, **inputs: Array) -> "Example":
        """The same text with other inputs for a loss."""
        return replace(self, inputs=tuple((name, tuple(map(float, values))) for name, values in inputs.items()))

    def weighted(self, factor: float | Array) -> "Example":
        """The same datum with its weights times `factor`."""
        return self.reading(weights=np.array(dict(self.inputs)["weights"]) * factor)

    @property
    def whole(self) -> tuple[int, ...]:
        """The text to the end: the tokens, and what the last of them predicts."""
        return (*self.tokens, int(np.asarray(self.targets)[-1]))

    @property
    def weights(self) -> Array:
        return np.array(dict(self.inputs)["weights"])


def text(length: int, seed: int) -> Example:
    """Random tokens, each predicting the next, with positive weights that are not all one and do not sum to one."""
    rng = np.random.default_rng(seed)
    tokens = tuple(int(token) for token in LOWEST_TOKEN + rng.integers(0, TOKENS, length + 1))
    weights = tuple(float(weight) for weight in rng.choice([0.5, 1.0, 1.5, 2.0], length))
    return Example(tokens[:-1], tokens[1:], (("weights", weights),))


@dataclass(frozen=True, slots=True)
class Pass:
    """`forward_backward`, or `forward` where not `backward`, over some data."""

    data: tuple[Example, ...]
    loss: str = "cross_entropy"
    config: tuple[tuple[str, float], ...] = ()
    backward: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """`optim_step`; the fields are AdamW's own, with defaults that let nothing but the gradient count."""

    learning_rate: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = LARGE_EPS
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def params(self) -> tinker.AdamParams:
        """The SDK's spelling."""
        return tinker.AdamParams(
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            grad_clip_norm=self.grad_clip_norm,
        )


@dataclass(frozen=True, slots=True)
class DimuonStep:
    """`optim_step` of a model whose optimizer is Dimuon."""

    learning_rate: float
    beta1: float = 0.0
    grad_clip_norm: float = 0.0

    def params(self) -> tinker.DimuonParams:
        """The SDK's spelling."""
        return tinker.DimuonParams(
            learning_rate=self.learning_rate, beta1=self.beta1, grad_clip_norm=self.grad_clip_norm
        )


Operation = Pass | Step | DimuonStep
Recipe = tuple[Operation, ...]


def passes(*data: Example) -> Pass:
    """One pass of cross-entropy."""
    return Pass(data)


def plain(rate: float) -> Step:
    """A step of `rate` times the gradient: what AdamW does with both betas 0 and an eps far above the gradient."""
    return Step(rate * LARGE_EPS)
