"""What a server and the processes of a backend say to each other. Pickled, between one process and its own children.

Functions do not travel: a pass carries its loss's name, or the graph that the loss was made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weaver import errors
from weaver.backend import ModelSource, Pass
from weaver.domain import Datum, LossGraph
from weaver.errors import ServerError, WeaverError
from weaver.loss import Loss


@dataclass(frozen=True, slots=True)
class Begin:
    """The first thing a process hears: what to open."""

    backend: str
    source: ModelSource
    disabled_plugins: frozenset[str]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the contract `Backend`, for every process. The first answers with the value, the others without."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadLosses:
    """Load losses by name; every process answers with `{name: None or what is wrong}`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class End:
    """Free everything and end."""


Message = Begin | Call | LoadLosses | End


@dataclass(frozen=True, slots=True)
class SentLoss:
    name: str
    graph: LossGraph | None


@dataclass(frozen=True, slots=True, eq=False)
class SentPass:
    """A `weaver.backend.Pass` on its way."""

    model_id: str
    data: Sequence[Datum]
    loss: SentLoss
    config: Mapping[str, Any]
    backward: bool

    @classmethod
    def of(cls, one: Pass) -> "SentPass":
        return cls(one.model_id, one.data, SentLoss(one.loss.name, one.loss.graph), one.config, one.backward)

    def arrived(self, loss: Loss) -> Pass:
        return Pass(self.model_id, self.data, loss, self.config, self.backward)


@dataclass(frozen=True, slots=True)
class Done:
    """`outcome` is what all processes must agree on: of passes, which of them failed."""

    value: Any = None
    outcome: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The backend raised one of weaver's errors: nothing has changed there."""

    error: WeaverError


@dataclass(frozen=True, slots=True)
class Broke:
    """The backend raised something else: nobody knows what has changed there."""

    reason: str


Reply = Done | Refused | Broke


def sendable(error: WeaverError) -> WeaverError:
    """The error as one of the classes that every process knows, with the same message."""
    known = next((one for one in type(error).__mro__ if vars(errors).get(one.__name__) is one), ServerError)
    return known(str(error))
