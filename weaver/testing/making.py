"""Random data that the door would let through, for any loss, from its record.

Shapes: T tokens of one datum, K targets per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from weaver.domain import Array, Datum, FloatArray, IntArray, TokenRows
from weaver.loss import TARGET_TOKENS, Loss, LossInput

LENGTHS: Final = (5, 1, 8, 3)
"""An even number of data, for losses of pairs."""


class Making:
    """Data from one generator."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.rng, self._vocabulary = np.random.default_rng(seed), vocabulary

    def data(
        self, loss: Loss, lengths: Sequence[int] = LENGTHS, targets: int | None = None, spelling: Sequence[str] = ()
    ) -> tuple[Datum, ...]:
        """One datum of each length with all that the loss reads, in that spelling or its first; with `targets`, that
        many per token."""
        return tuple(self.datum(loss, length, targets, spelling) for length in lengths)

    def datum(self, loss: Loss, length: int, targets: int | None = None, spelling: Sequence[str] = ()) -> Datum:
        shape = (length,) if targets is None else (length, targets)
        inputs: dict[str, Array] = {TARGET_TOKENS: self._tokens(shape)}
        drawn = self._drawn(length)
        recorded = any(one.recorded for one in loss.inputs)
        for one in loss.inputs_of(spelling):
            if one.name != TARGET_TOKENS:
                made = self._input(one, shape, drawn)
                inputs[one.name] = made if one.recorded or not recorded else _where(drawn, made)
        return Datum(self._tokens((length,)), inputs)

    def masked(self, datum: Datum, most: int = 40) -> Datum:
        """The datum with a sampling mask: some rows empty, some of the target alone, some of up to `most` tokens."""
        rows: list[list[int]] = []
        for t, target in enumerate(datum.loss_fn_inputs[TARGET_TOKENS].tolist()):
            count = (0, 1, int(self.rng.integers(2, most)))[(t + 2) % 3]
            others = self.rng.choice(self._vocabulary, count, replace=False).tolist()
            rows.append(sorted({target, *others[1:]}) if count else [])
        return replace(datum, sampling_mask=TokenRows.of_lists(rows))

    def logprobs(self, datum: Datum) -> FloatArray:
        """What a trainer could say of the targets."""
        return np.array(self.rng.uniform(-6, -0.1, datum.loss_fn_inputs[TARGET_TOKENS].shape), np.float32)

    def entropies(self, datum: Datum) -> FloatArray:
        """What a trainer could say of the tokens' distributions, (T,)."""
        return np.array(self.rng.uniform(0.1, 3, len(datum.tokens_T)), np.float32)

    def _tokens(self, shape: tuple[int, ...]) -> IntArray:
        return self.rng.integers(2, self._vocabulary, shape)

    def _drawn(self, length: int) -> Any:
        """A prompt first, then what a sampler drew."""
        return np.arange(length) >= (length - 1) // 2

    def _input(self, one: LossInput, shape: tuple[int, ...], drawn: Any) -> Array:
        sizes = {"target": shape, "token": shape[:1], "table": (shape[0], 3), "scalar": (1,)}
        if one.dtype == "int64":
            return self.rng.integers(1, 4, sizes[one.shape])
        if one.recorded or one.name == "logprobs":
            values = self.rng.uniform(-6, -0.1, sizes[one.shape]).astype(np.float32)
            return np.where(drawn, values, np.float32(np.nan)) if one.recorded else values
        return np.array(self.rng.normal(0, 1, sizes[one.shape]), np.float32)


def _where(drawn: Any, array: Array) -> Array:
    kept = drawn.reshape(-1, *([1] * (array.ndim - 1)))
    return array if array.shape[0] != drawn.size else (array * kept).astype(array.dtype)


def without_optional(loss: Loss, data: Sequence[Datum]) -> tuple[Datum, ...]:
    """The same data with nothing but what must be there."""
    optional = {one.name for one in loss.inputs if one.optional}
    return tuple(
        replace(datum, loss_fn_inputs={name: one for name, one in datum.loss_fn_inputs.items() if name not in optional})
        for datum in data
    )


def config_of(loss: Loss, given: Mapping[str, float | str]) -> dict[str, float | str]:
    """`given`, defaults, and for what must be given something in its range."""
    made: dict[str, float | str] = {}
    for field in loss.config:
        if field.optional:
            continue
        if field.type == "text":
            made[field.name] = field.choices[0] if field.default is None else field.default
        elif field.default is None:
            low, high = field.minimum, field.maximum
            made[field.name] = float(np.clip(0.5, low, high)) if field.type == "float" else float(np.clip(1, low, high))
    return loss.effective_config({**{k: v for k, v in made.items() if k not in given}, **given})
