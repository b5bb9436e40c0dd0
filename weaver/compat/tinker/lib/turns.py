"""The order of one model's operations: numbers are given when methods are called, turns are taken by number."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

FIRST = 1
"""The number 0 is the model's creation."""


class Turns:
    """`reserve` may be called from any thread; all else belongs to the background loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserved = FIRST
        self._turn = FIRST
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._failure: BaseException | None = None

    def reserve(self, count: int = 1) -> range:
        """The next numbers, in the order of the calls."""
        with self._lock:
            first = self._reserved
            self._reserved += count
            return range(first, self._reserved)

    @asynccontextmanager
    async def take(self, number: int) -> AsyncIterator[None]:
        """Wait until every lower number has had its turn; the next has its turn when the block ends.

        Raises RuntimeError for all that follow a custom loss that failed between its two passes.
        """
        if self._failure is None and self._turn != number:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]
        if self._failure is not None:
            raise RuntimeError(
                "A previous request failed; this TrainingClient is poisoned and cannot accept further requests."
            ) from self._failure
        try:
            yield
        finally:
            self._turn = number + 1
            waiting = self._waiting.pop(self._turn, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def poison(self, failure: BaseException) -> None:
        """A number will never come, so what follows it must not: it was meant to come after it."""
        if self._failure is None:
            self._failure = failure
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
