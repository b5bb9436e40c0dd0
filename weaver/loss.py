"""The record a loss plugin yields, and what its function receives.

Shapes: T tokens of one datum, K targets per token, N columns of a table. A loss is arithmetic on logprobs, and on
entropies where it asks for them: the backend computes both, so the same loss runs on every backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from weaver.domain import LossGraph
from weaver.errors import InvalidInput, PluginBroken

if TYPE_CHECKING:
    from torch import Tensor

TARGET_TOKENS: Final = "target_tokens"
LOGPROBS: Final = "logprobs"
SAMPLING_MASK: Final = "sampling_mask"
ENTROPY: Final = "entropy"
REDUCTIONS: Final = ("sum", "mean", "min", "max")
"""How a loss's metrics, named `name:reduction`, are put together."""


@dataclass(frozen=True, slots=True)
class LossInput:
    """One array a loss reads from `datum.loss_fn_inputs`, beside `target_tokens`, which every loss reads.

    `shape` "target" means the shape of `target_tokens`, (T,) or (T, K); "token" (T,), one per token whatever the
    targets; "table" (T, N) for any N; "scalar" one number per sequence. `dtype` "any" takes float32 and int64.

    An `optional` one may be left out of a datum, and is then absent from what the function gets.

    `recorded`: the server fills it in, from what it recorded of the sequences that the datum's `loss_fn_input_spans`
    name: the log probability each token was drawn with, NaN where the spans say that nothing was drawn. A client need
    not send it; if it does, it must agree. All other inputs must be zero where nothing was drawn.
    """

    name: str
    dtype: Literal["float32", "int64", "any"] = "float32"
    shape: Literal["target", "token", "table", "scalar"] = "target"
    description: str = ""
    recorded: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One key of `loss_fn_config`. Without a default it must be given, unless it is `optional`: then the function gets
    no such key where a client gives none. The range is inclusive; values must also be greater than `above`.

    `type` "float" is any number of the range, "int" a whole one, "text" one of the `choices`.

    A `role` is what the backend does with the value, whatever the key is called. "temperature": logits are divided by
    it before anything is computed of them; see `TEMPERATURE`. "entropy": where it is not 0 the function gets entropies;
    see `ENTROPY_COEFF`.
    """

    name: str
    default: float | str | None = None
    minimum: float = -math.inf
    maximum: float = math.inf
    description: str = ""
    type: Literal["float", "int", "text"] = "float"
    choices: tuple[str, ...] = ()
    above: float = -math.inf
    optional: bool = False
    role: Literal["", "temperature", "entropy"] = ""

    def checked(self, value: float | str, where: str) -> float | str:
        """`value` as the loss gets it. Raises InvalidInput, which begins with `where` and says what is taken."""
        if self.type == "text":
            if value not in self.choices:
                raise InvalidInput(f"{where} takes one of {', '.join(map(repr, self.choices))}")
            return value
        if isinstance(value, str):
            raise InvalidInput(f"{where} needs a number")
        if not self.minimum <= value <= self.maximum or not self.above < value or not math.isfinite(value):
            raise InvalidInput(f"{where} takes finite values {self.range}")
        if self.type == "int" and value != int(value):
            raise InvalidInput(f"{where} needs a whole number")
        return int(value) if self.type == "int" else float(value)

    @property
    def range(self) -> str:
        """The numbers it takes, in words."""
        if self.above == -math.inf or self.above < self.minimum:
            return f"from {self.minimum} to {self.maximum}"
        return f"above {self.above:g}" + (f" to {self.maximum}" if math.isfinite(self.maximum) else "")


TEMPERATURE: Final = ConfigField(
    "temperature", 1.0, above=0.0, role="temperature", description="what logits are divided by, before all else"
)
"""For a loss's `config`: its logprobs and entropies, and the logprobs that a client gets back, are those of
softmax(logits / temperature)."""

ENTROPY_COEFF: Final = ConfigField(
    "entropy_coeff", 0.0, role="entropy", description="how much the sum of the tokens' entropies lowers the loss"
)
"""For a loss's `config`: where it is not 0 the function finds among its inputs, as "entropy", (T,) the entropy of each
token's whole distribution, -Σ p log p over the vocabulary, float32 and differentiable; over the tokens of its row where
a datum has a sampling mask."""


@dataclass(frozen=True, slots=True)
class OutputField:
    """One array that a loss gives back for each datum, beside `logprobs`, in `loss_fn_outputs`: float32, of one of the
    shapes of inputs; "scalar" arrives as an array of one number."""

    name: str
    shape: Literal["target", "token", "scalar"] = "target"
    description: str = ""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss's value with metrics of its own, named `name:reduction` (sum, mean, min, max), and the declared outputs:
    a tensor each, or, of a loss that sees the whole batch, a list with one tensor for each datum."""

    loss: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, Tensor | Sequence[Tensor]] = field(default_factory=dict)


LossFunction = Callable[["Tensor", Mapping[str, "Tensor"], Mapping[str, Any]], "Tensor | LossOutput"]
"""Of one datum: its logprobs, its inputs, the config."""
BatchLossFunction = Callable[
    [Sequence["Tensor"], Sequence[Mapping[str, "Tensor"]], Mapping[str, Any]], "Tensor | LossOutput"
]
"""Of all data of a pass: a list of logprobs, a list of inputs, the config."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name.

    `function(logprobs, inputs, config)` gets one datum: `logprobs` float32, (T,) or (T, K), the trainer's log
    probability of each target, differentiable; `inputs` the declared arrays as tensors of the same shape; `config`
    every declared field, defaults filled in. It returns the datum's loss summed over tokens (a scalar tensor) or a
    `LossOutput`. Losses are sums: weaver never averages.

        def reinforce(logprobs, inputs, config):
            return -(logprobs * inputs["advantages"]).sum()

        Loss("reinforce", reinforce, inputs=(LossInput("advantages"),), description="REINFORCE")

    With `batch=True` the function gets lists, one entry for each datum, of all data of a call, however a client and the
    backend split it, and returns the loss of the whole.

    `target_ranks` are the ranks of `target_tokens` it can work with: 1 for (T,), 2 for (T, K). An input that is not
    declared is refused, unless the loss `carries_others`: then a datum may hold arrays that this loss does not read.

    `spellings` are sets of input names that say the same in different words: a datum has inputs of one of them and none
    of the others', which the function then does not get. Without any of them it counts as written in the first.

    A `forward_only` loss has a value to report and no gradient: a pass with a backward part is refused.

    With `sampling_masks` a datum may say which tokens each of its targets was drawn among: the logprobs and entropies
    that the function gets are then of softmax(logits / temperature) over those alone. The function does not see the
    mask. To other losses a datum with one is refused.

    A loss with `from_graph` is none by itself: `from_graph(graph)` is the loss that a client's graph computes, and has
    it as its `graph`: functions do not travel to other processes, names and graphs do.

    `description` is one line, `source` where the formula is from. `plugin` is the package that brought it; the registry
    fills it in.
    """

    name: str
    function: LossFunction | BatchLossFunction
    inputs: tuple[LossInput, ...] = ()
    config: tuple[ConfigField, ...] = ()
    description: str = ""
    source: str = ""
    target_ranks: tuple[int, ...] = (1, 2)
    carries_others: bool = False
    from_graph: Callable[[LossGraph], Loss] | None = None
    outputs: tuple[OutputField, ...] = ()
    batch: bool = False
    plugin: str = ""
    graph: LossGraph | None = field(default=None, compare=False)
    spellings: tuple[tuple[str, ...], ...] = ()
    forward_only: bool = False
    sampling_masks: bool = False

    def __post_init__(self) -> None:
        """Raises PluginBroken for a record that contradicts itself."""
        reserved = (ENTROPY,) * bool(self._of_role("entropy")) + (SAMPLING_MASK,) * self.sampling_masks
        self._check_names("inputs", (one.name for one in self.inputs), reserved)
        self._check_names("config", (one.name for one in self.config), reserved=())
        self._check_names("outputs", (one.name for one in self.outputs), reserved=(LOGPROBS,))
        self._check_roles()
        self._check_spellings()
        for declared in self.config:
            if declared.optional and declared.default is not None:
                raise PluginBroken(f"the loss {self.name!r} declares config[{declared.name!r}] optional with a default")
            if declared.default is not None:
                where = (
                    f"the loss {self.name!r} declares config[{declared.name!r}] with the default {declared.default!r}"
                )
                try:
                    declared.checked(declared.default, f"{where}, but")
                except InvalidInput as error:
                    raise PluginBroken(str(error)) from error

    def _check_names(self, what: str, names: Iterable[str], reserved: tuple[str, ...]) -> None:
        seen = set(reserved)
        for name in names:
            if name in seen:
                raise PluginBroken(f"the loss {self.name!r} declares {name!r} twice among its {what}, or it is taken")
            seen.add(name)

    def _check_roles(self) -> None:
        for role in ("temperature", "entropy"):
            fields = [declared for declared in self.config if declared.role == role]
            if len(fields) > 1:
                names = " and ".join(repr(declared.name) for declared in fields)
                raise PluginBroken(f"the loss {self.name!r} declares two config fields of the role {role!r}: {names}")
            for declared in fields:
                what = f"the loss {self.name!r} declares config[{declared.name!r}] of the role {role!r}, but"
                if declared.type == "text":
                    raise PluginBroken(f"{what} as text; it must be a number")
                if role == "temperature" and declared.minimum <= 0 and declared.above < 0:
                    raise PluginBroken(f"{what} takes values that are not above 0; declare it with above=0.0")

    def _check_spellings(self) -> None:
        known = {one.name for one in self.inputs}
        self._check_names("spellings", (name for spelling in self.spellings for name in spelling), reserved=())
        for name in (name for spelling in self.spellings for name in spelling):
            if name not in known:
                raise PluginBroken(f"the loss {self.name!r} has {name!r} in a spelling, but not among its inputs")

    @property
    def blamed(self) -> str:
        """The loss as messages about failures name it, with the package it is from."""
        return f"the loss {self.name!r}" + (f" of {self.plugin}" if self.plugin else "")

    def temperature(self, config: Mapping[str, Any]) -> float:
        """What logits are divided by, of an effective config: 1 for a loss that does not ask for it."""
        declared = self._of_role("temperature")
        return 1.0 if declared is None else float(config.get(declared.name, declared.default or 1.0))

    def wants_entropy(self, config: Mapping[str, Any]) -> bool:
        """Whether the function gets entropies under an effective config."""
        declared = self._of_role("entropy")
        return declared is not None and bool(config.get(declared.name, declared.default))

    def _of_role(self, role: str) -> ConfigField | None:
        return next((declared for declared in self.config if declared.role == role), None)

    def inputs_of(self, names: Collection[str]) -> tuple[LossInput, ...]:
        """The inputs that are read of a datum with arrays of these names, in its spelling: they may be lacking."""
        if not self.spellings:
            return self.inputs
        chosen = next((one for one in self.spellings if any(name in names for name in one)), self.spellings[0])
        others = {name for spelling in self.spellings if spelling != chosen for name in spelling}
        return tuple(one for one in self.inputs if one.name not in others)

    def check_spelling(self, names: Collection[str], where: str) -> None:
        """Raises InvalidInput, which begins with `where`, for arrays of two spellings."""
        used = [[name for name in spelling if name in names] for spelling in self.spellings]
        mixed = " beside ".join(repr(found[0]) for found in used if found)
        if sum(map(bool, used)) > 1:
            either = ", or ".join(" and ".join(spelling) for spelling in self.spellings)
            raise InvalidInput(
                f"{where} has {mixed}; the loss {self.name!r} reads either {either}. Leave those of one set out"
            )

    def effective_config(self, given: Mapping[str, float | str]) -> dict[str, float | str]:
        """`given` checked against the declared fields, with defaults filled in.

        Raises InvalidInput naming an unknown key, a missing one, or a value out of range.
        """
        known = {declared.name for declared in self.config}
        for key in given:
            if key not in known:
                have = f"it reads {', '.join(sorted(known))}" if known else "it reads no config"
                raise InvalidInput(f"loss_fn_config[{key!r}] is not read by the loss {self.name!r}: {have}")
        return {
            declared.name: self._effective(declared, given.get(declared.name))
            for declared in self.config
            if not declared.optional or declared.name in given
        }

    def _effective(self, declared: ConfigField, given: float | str | None) -> float | str:
        value = declared.default if given is None else given
        if value is None:
            raise InvalidInput(f"loss_fn_config[{declared.name!r}] is missing; the loss {self.name!r} has no default")
        shown = repr(value) if isinstance(value, str) else str(value)
        return declared.checked(value, f"loss_fn_config[{declared.name!r}] is {shown}; the loss {self.name!r}")
