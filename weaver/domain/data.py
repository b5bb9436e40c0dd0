"""Training data: what a forward or backward pass reads.

Shapes: T tokens of one datum, K targets per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Array = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ProvenanceSpan:
    """Says where `length` consecutive tokens of a datum came from: a prompt, or a sequence the server sampled."""

    kind: str  # "prompt" or "sampled"
    sequence_id: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Rows of token ids of any lengths: row t is `tokens_c[starts[t]:starts[t + 1]]`, so `starts` has one more."""

    starts: IntArray
    tokens_c: IntArray

    @classmethod
    def of_lists(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(starts, np.array([token for row in rows for token in row], np.int64))

    @property
    def rows_c(self) -> IntArray:
        """The row that each token is in."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def lists(self) -> list[list[int]]:
        return [row.tolist() for row in np.split(self.tokens_c, self.starts[1:-1])] if len(self) else []

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Datum:
    """One training sequence and the arrays its loss reads.

    `tokens_T` are int64 token ids. Each array of `loss_fn_inputs` is (T,) or (T, K), int64 or float32; position t of
    `target_tokens` is what position t of the tokens predicts (the caller has shifted them already).

    A `sampling_mask` has a row for each target: the tokens it was drawn among, which is what its probability is
    renormalised over; an empty row means the whole vocabulary.
    """

    tokens_T: IntArray
    loss_fn_inputs: Mapping[str, Array]
    token_spans: tuple[ProvenanceSpan, ...] = field(default=())
    loss_input_spans: tuple[ProvenanceSpan, ...] = field(default=())
    sampling_mask: TokenRows | None = None
