"""What one forward call carries beside its tokens: which adapter each token uses, and how tokens attend.

The base model's modules are shared by the trainer and the sampler, each on a thread of its own, so nothing about a
call may be module state. It travels in a context variable, which every thread has for itself.

Shapes: T packed tokens of the call (batch dimension 1), H query heads, G key/value heads, D head size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """A (rank, in) and B (out, rank), float32, of one linear module; `scale` is alpha / rank."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


LoraWeights = Mapping[str, LoraPair]
"""One adapter: its pairs by module name."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens [start, stop) of the call use `adapter`; None is the base model."""

    start: int
    stop: int
    adapter: LoraWeights | None


class Attention(Protocol):
    """How the call's tokens attend to each other and to what is cached."""

    def __call__(
        self, layer: int, query_1HTD: torch.Tensor, key_1GTD: torch.Tensor, value_1GTD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """The attention output, (1, T, H, D)."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """`segments` cover [0, T) in order. `recompute` trades a second forward per layer for not keeping activations."""

    segments: tuple[Segment, ...]
    attention: Attention
    recompute: bool = False


_current: ContextVar[Call] = ContextVar("weaver_peft_call")


def current_call() -> Call:
    return _current.get()


@contextmanager
def forward_call(call: Call) -> Iterator[None]:
    """Make `call` the one that the base model's modules see on this thread."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
