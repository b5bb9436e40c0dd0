"""Who may run on an engine at the same time.

Some faults of vLLM's come from what runs beside a request: on CPUs the engine ends when logprobs of a prompt are
computed beside anything else, and on GPUs the prompt's rows may get what adapts the output layer for others.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto


class Kind(Enum):
    """All run together, but those that run ALONE."""

    TOGETHER = auto()
    ALONE = auto()


class Turns:
    """Lets one kind run at a time. Who comes while another kind waits, waits too; when all that ran are done, all of
    the kind that waits longest go on together."""

    def __init__(self) -> None:
        self._kind, self._running = Kind.TOGETHER, 0
        self._waiting: deque[tuple[Kind, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, kind: Kind) -> AsyncIterator[None]:
        """A turn: while it is held, only its own kind runs beside it."""
        await self._begin(kind)
        try:
            yield
        finally:
            self._running -= 1
            self._go_on()

    async def _begin(self, kind: Kind) -> None:
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, let_in))
        self._go_on()
        try:
            await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled():
                self._running -= 1
            self._waiting = deque(each for each in self._waiting if each[1] is not let_in)
            self._go_on()
            raise

    def _go_on(self) -> None:
        if not self._waiting:
            return
        if self._running == 0:
            self._kind = self._waiting[0][0]
            self._admit(1 if self._kind is Kind.ALONE else len(self._waiting))
        elif self._kind is not Kind.ALONE and all(kind is self._kind for kind, _ in self._waiting):
            self._admit(len(self._waiting))

    def _admit(self, most: int) -> None:
        kept: deque[tuple[Kind, asyncio.Future[None]]] = deque()
        for kind, let_in in self._waiting:
            if kind is self._kind and most > 0 and not let_in.done():
                let_in.set_result(None)
                self._running += 1
                most -= 1
            elif not let_in.done():
                kept.append((kind, let_in))
        self._waiting = kept
