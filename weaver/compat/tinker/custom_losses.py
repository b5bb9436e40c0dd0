"""Tinker's traced losses: the body of `/create_custom_loss`, and the graph in it as a value.

An argument stands for itself, or is an object with one key that says what it is: `{"ref": "exp"}`, `{"tuple": [...]}`,
`{"dict": {...}}`, `{"slice": [1, null, null]}`, `{"ellipsis": true}`, `{"float": "inf"}`, `{"dtype": "float32"}` ...
"""

import reprlib
from typing import Any, Final, Literal

from pydantic import Field

from weaver.compat.tinker.requests import Computing, SequenceNumber
from weaver.domain import GraphInput, GraphNode, LossGraph, NodeRef, TorchConstant
from weaver.errors import InvalidInput

MAXIMUM_DEPTH: Final = 16
_FLOATS: Final = ("inf", "-inf", "nan")
_CONSTANTS: Final = ("dtype", "device", "layout", "memory_format")


class Input(Computing):
    name: str
    rank: int


class Node(Computing):
    op: str
    name: str
    target: str
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Graph(Computing):
    format: Literal[1]
    nodes: list[Node]


class CreateCustomLoss(Computing):
    session_id: str
    custom_loss_seq_id: SequenceNumber
    name: str = Field(max_length=200)
    inputs: list[Input]
    graph: Graph


def loss_graph(body: CreateCustomLoss) -> LossGraph:
    """The graph as a value, not yet checked against what may be run. Raises InvalidInput naming what it cannot read."""
    return LossGraph(
        body.name,
        tuple(GraphInput(one.name, one.rank) for one in body.inputs),
        tuple(_node(node, f"graph.nodes[{index}]") for index, node in enumerate(body.graph.nodes)),
    )


def _node(node: Node, name: str) -> GraphNode:
    args = tuple(_argument(arg, f"{name}.args[{index}]") for index, arg in enumerate(node.args))
    kwargs = {key: _argument(arg, f"{name}.kwargs[{key!r}]") for key, arg in node.kwargs.items()}
    return GraphNode(node.op, node.name, node.target, args, kwargs)


def _argument(raw: Any, name: str, depth: int = 0) -> Any:
    if depth > MAXIMUM_DEPTH:
        raise InvalidInput(f"{name} is nested more than {MAXIMUM_DEPTH} deep")
    if isinstance(raw, list):
        return [_argument(one, name, depth + 1) for one in raw]
    if isinstance(raw, dict):
        return _tagged(raw, name, depth + 1)
    return raw


def _tagged(raw: dict[str, Any], name: str, depth: int) -> Any:
    match list(raw.items()):
        case [("ref", str(node))]:
            return NodeRef(node)
        case [("tuple", list(items))]:
            return tuple(_argument(one, name, depth) for one in items)
        case [("dict", dict(items))]:
            return {key: _argument(one, name, depth) for key, one in items.items()}
        case [("slice", [start, stop, step])]:
            return slice(*(_argument(one, name, depth) for one in (start, stop, step)))
        case [("ellipsis", True)]:
            return ...
        case [("float", str(number))] if number in _FLOATS:
            return float(number)
        case [(str(kind), str(constant))] if kind in _CONSTANTS:
            return TorchConstant(kind, constant)
    raise InvalidInput(f"{name} is {reprlib.repr(raw)}, which is not an encoded argument of format 1")
