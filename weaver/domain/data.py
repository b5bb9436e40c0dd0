"""Training data: what a forward or backward pass reads.

Shapes: T tokens of one datum, K targets per token.
"""

from collections.abc import Mapping
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
class Datum:
    """One training sequence and the arrays its loss reads.

    `tokens_T` are int64 token ids. Each array of `loss_fn_inputs` is (T,) or (T, K), int64 or float32; position t of
    `target_tokens` is what position t of the tokens predicts (the caller has shifted them already).
    """

    tokens_T: IntArray
    loss_fn_inputs: Mapping[str, Array]
    token_spans: tuple[ProvenanceSpan, ...] = field(default=())
    loss_input_spans: tuple[ProvenanceSpan, ...] = field(default=())
