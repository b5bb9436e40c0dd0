"""What one forward call carries beside its tokens: which adapter each token uses, positions, and who attends to whom.

Shapes: T packed tokens of the call, under sequence parallelism padded to a multiple of tp; D head size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from weaver_peft.packing import PackedAttention


@dataclass(frozen=True, slots=True, eq=False)
class LocalPair:
    """This rank's part of a LoRA pair, float32; `scale` is alpha / rank."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


LocalWeights = Mapping[str, LocalPair]
"""One adapter's pairs on this rank, by the Hugging Face module's name."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens [start, stop) use `weights`; None is the base model. Empty ones stay, so that graphs are alike on all
    ranks: their collectives must find each other in the backward pass."""

    start: int
    stop: int
    weights: LocalWeights | None

    def pair(self, name: str) -> LocalPair | None:
        """What its tokens' adapter adds to a module, if anything."""
        return None if self.weights is None else self.weights.get(name)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """`segments` cover the T tokens in order, `local_segments` those that lie on this rank between layers (all of them
    without sequence parallelism), `mixture_segments` those of every data rank that meets in mixture layers, each padded
    to the same length. `anchor` keeps their graphs alike."""

    segments: Sequence[Segment]
    local_segments: Sequence[Segment]
    mixture_segments: Sequence[Segment]
    attention: PackedAttention
    cosine_T1D: torch.Tensor
    sine_T1D: torch.Tensor
    mixture_tokens: int
    anchor: torch.Tensor
    recompute: bool


_current: ContextVar[Call] = ContextVar("weaver_megatron_call")


def current_call() -> Call:
    return _current.get()


@contextmanager
def forward_call(call: Call) -> Iterator[None]:
    """Make `call` the one that the model's modules see."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


def within(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    """What of the segments lies in tokens [start, stop), counted from there."""
    return [
        Segment(min(max(one.start, start), stop) - start, min(max(one.stop, start), stop) - start, one.weights)
        for one in segments
    ]
