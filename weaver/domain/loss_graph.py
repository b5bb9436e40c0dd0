"""A loss as plain data: the operations a client's function consists of, in the order they run. Nothing in it is code.

Format 1 of Tinker's custom losses, which are torch.fx graphs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeRef:
    """The value of an earlier node."""

    name: str


@dataclass(frozen=True, slots=True)
class TorchConstant:
    """`torch.<name>`; `kind` is "dtype", "device", "layout" or "memory_format"."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class GraphInput:
    """`rank` 0 is one number, 1 is one per token, 2 several per token."""

    name: str
    rank: int


@dataclass(frozen=True, slots=True)
class GraphNode:
    """`op` is "placeholder", "call_function", "call_method" or "output"; `target` what it calls.

    Arguments are numbers, strings, None, `...`, NodeRef, TorchConstant, and slices, tuples, lists and dicts of those.
    """

    op: str
    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LossGraph:
    """`inputs` are the placeholders in order: `logprobs`, the trained model's, then arrays of the datum."""

    name: str
    inputs: tuple[GraphInput, ...]
    nodes: tuple[GraphNode, ...]
