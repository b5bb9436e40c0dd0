"""The record a loss plugin yields, and what its function receives.

Shapes: T tokens of one datum, K targets per token, N columns of a table. A loss is arithmetic on logprobs: the backend
computes them, so the same loss runs on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from weaver.errors import InvalidInput
from weaver.types import LossGraph

if TYPE_CHECKING:
    from torch import Tensor

TARGET_TOKENS = "target_tokens"


@dataclass(frozen=True, slots=True)
class LossInput:
    """One array a loss reads from `datum.loss_fn_inputs`, beside `target_tokens`, which every loss reads.

    `shape` "target" means the shape of `target_tokens`, (T,) or (T, K); "token" (T,) whatever the targets; "table"
    (T, N) for any N; "scalar" one number. `dtype` "any" takes float32 and int64.

    `recorded`: the server fills it in, from what it recorded of the sequences that the datum's `loss_fn_input_spans`
    name: the log probability each token was drawn with, NaN where the spans say that nothing was drawn. A client need
    not send it; if it does, it must agree. All other inputs must be zero where nothing was drawn.
    """

    name: str
    dtype: Literal["float32", "int64", "any"] = "float32"
    shape: Literal["target", "token", "table", "scalar"] = "target"
    description: str = ""
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One number of `loss_fn_config`. Without a default it must be given. The range is inclusive."""

    name: str
    default: float | None = None
    minimum: float = -math.inf
    maximum: float = math.inf
    description: str = ""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss's value with metrics of its own, named `name:reduction` (sum, mean, min, max)."""

    loss: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


LossFunction = Callable[["Tensor", Mapping[str, "Tensor"], Mapping[str, float]], "Tensor | LossOutput"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name.

    `function(logprobs, inputs, config)` gets one datum: `logprobs` float32, (T,) or (T, K), the trainer's log
    probability of each target, differentiable; `inputs` the declared arrays as tensors of the same shape; `config`
    every declared field, defaults filled in. It returns the datum's loss summed over tokens (a scalar tensor) or a
    `LossOutput`. Losses are sums: weaver never averages.

    `target_ranks` are the ranks of `target_tokens` it can work with: 1 for (T,), 2 for (T, K). An input that is not
    declared is refused, unless the loss `carries_others`: then a datum may hold arrays that this loss does not read.

    A loss with `from_graph` is none by itself: `from_graph(graph)` is the loss that a client's graph computes.

        def reinforce(logprobs, inputs, config):
            return -(logprobs * inputs["advantages"]).sum()

        Loss("reinforce", reinforce, inputs=(LossInput("advantages"),), description="REINFORCE")
    """

    name: str
    function: LossFunction
    inputs: tuple[LossInput, ...] = ()
    config: tuple[ConfigField, ...] = ()
    description: str = ""
    source: str = ""
    target_ranks: tuple[int, ...] = (1, 2)
    carries_others: bool = False
    from_graph: Callable[[LossGraph], Loss] | None = None

    def effective_config(self, given: Mapping[str, float | str]) -> dict[str, float]:
        """`given` checked against the declared fields, with defaults filled in.

        Raises InvalidInput naming an unknown key, a missing one, or a value out of range.
        """
        known = {declared.name for declared in self.config}
        for key in given:
            if key not in known:
                have = f"it reads {', '.join(sorted(known))}" if known else "it reads no config"
                raise InvalidInput(f"loss_fn_config[{key!r}] is not read by the loss {self.name!r}: {have}")
        return {declared.name: self._effective(declared, given.get(declared.name)) for declared in self.config}

    def _effective(self, declared: ConfigField, value: float | str | None) -> float:
        if value is None and declared.default is None:
            raise InvalidInput(f"loss_fn_config[{declared.name!r}] is missing; the loss {self.name!r} has no default")
        if isinstance(value, str):
            raise InvalidInput(f"loss_fn_config[{declared.name!r}] is {value!r}; the loss {self.name!r} needs a number")
        number = float(declared.default if value is None else value)  # type: ignore[arg-type]
        if not declared.minimum <= number <= declared.maximum or not math.isfinite(number):
            raise InvalidInput(
                f"loss_fn_config[{declared.name!r}] is {number}; the loss {self.name!r} takes finite values from "
                f"{declared.minimum} to {declared.maximum}"
            )
        return number
