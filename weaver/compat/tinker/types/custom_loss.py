"""A loss written in torch, traced and sent to be computed at the server."""

from typing import Any, Literal, TypeAlias

from pydantic import Field

from weaver.compat.tinker.types.base import Lenient, Strict

CustomLossInputRank: TypeAlias = Literal[0, 1, 2]
CustomLossNodeOp: TypeAlias = Literal[
    "placeholder", "get_attr", "call_function", "call_method", "call_module", "output"
]


class CustomLossInput(Strict):
    """An input the loss reads, with its number of dimensions."""

    name: str
    rank: CustomLossInputRank


class CustomLossNode(Strict):
    """One step of the traced function."""

    op: CustomLossNodeOp
    name: str
    target: str
    args: list[Any] = Field(default=[])
    kwargs: dict[str, Any] = Field(default={})


class CustomLossGraph(Strict):
    """The traced function."""

    format: Literal[1] = 1
    nodes: list[CustomLossNode]


class CreateCustomLossRequest(Strict):
    """A traced function for the session's models."""

    session_id: str
    custom_loss_seq_id: int
    name: str
    inputs: list[CustomLossInput]
    graph: CustomLossGraph
    type: Literal["create_custom_loss"] = "create_custom_loss"


class CreateCustomLossResponse(Lenient):
    """The name under which passes can use it."""

    loss_id: str
    type: Literal["create_custom_loss"] = "create_custom_loss"
