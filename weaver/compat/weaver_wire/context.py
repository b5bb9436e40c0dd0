"""What this wire's endpoints work with: the service, and the little that this face of it remembers."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from weaver.compat.weaver_wire.numbering import Numbering
from weaver.compat.weaver_wire.operations import Operations
from weaver.errors import UnknownName
from weaver.service import Service

HOLD_SECONDS: Final = 20.0
"""How long a POST waits for its result before it answers that it is pending: far below the client's 60."""

Params = Mapping[str, str]
Body = Mapping[str, Any]
Answer = tuple[int, Any]
"""The HTTP status, and the JSON value, in which numpy arrays may stand for lists of numbers."""


@dataclass(frozen=True, slots=True)
class WireContext:
    """One for an application or a process; `replace` makes the one of a request.

    `hold_seconds`: how long an operation's POST waits for the result (0: not at all; None: as long as it takes).
    `base_url`: the URL by which the client reached this server, with the slash at its end; None in the same process.
    `is_local`: whether the client can read this machine's files. `stopping` is set when the server shuts down.
    """

    service: Service
    hold_seconds: float | None = HOLD_SECONDS
    base_url: str | None = None
    is_local: bool = True
    stopping: asyncio.Event | None = None
    operations: Operations = field(default_factory=Operations)
    numbering: Numbering = field(default_factory=Numbering)
    sample_numbers: Iterator[int] = field(default_factory=itertools.count)
    max_lengths: dict[str, int] = field(default_factory=dict)
    """By model: the longest sequence it was created for, where its client said so."""

    def has(self, model_id: str) -> bool:
        """Whether the model is in memory."""
        try:
            self.service.model_info(model_id)
        except UnknownName:
            return False
        return True

    def forget_models(self) -> None:
        """Drop what is remembered of models that are gone: their sessions have ended."""
        for model_id in {*self.numbering.models(), *self.max_lengths}:
            if not self.has(model_id):
                self.numbering.forget(model_id)
                self.max_lengths.pop(model_id, None)


Handler = Callable[[WireContext, Params, Params, Body], Awaitable[Answer]]
"""An endpoint: what the path and the query say, and the body."""
