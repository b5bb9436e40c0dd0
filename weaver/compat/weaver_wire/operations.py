"""Operations: what a client was promised, until it has the result."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from weaver.compat.weaver_wire.errors import Json, answer_error
from weaver.service.futures import FutureTable

RESULT_SECONDS: Final = 600.0
UNFETCHED_SECONDS: Final = 86_400.0
HELD: Final = 512
"""How many requests may wait for their results at once: each takes one of its client's 1000 connections."""

Encode = Callable[[Any], Json]
"""Makes what a client gets of a result. It may take a while, and is called when a client asks."""


class _Promised(Future[Callable[[], Json]]):
    """Settles with what makes the client's answer."""

    def __init__(self, waits_for: Callable[[], str | None]) -> None:
        super().__init__()
        self.waits_for = waits_for
        self.set_running_or_notify_cancel()


@dataclass(slots=True)
class Operations:
    """Every method may be called from any thread; `settled` on any event loop."""

    held: int = 0
    _table: FutureTable = field(default_factory=lambda: FutureTable(RESULT_SECONDS, UNFETCHED_SECONDS))

    def add(
        self,
        operation_id: str,
        future: "Future[Any]",
        encode: Encode,
        waits_for: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Promise the result of `future`. A repeat of an id replaces what has the same result."""
        promised = _Promised(waits_for)
        future.add_done_callback(partial(_settle, promised, encode))
        self._keep(operation_id, promised)

    async def settled(self, operation_id: str, seconds: float | None, stopping: asyncio.Event | None = None) -> bool:
        """Wait until the operation is done or has failed, at most so long. Raises Forgotten."""
        promised: Any = self._table.get(operation_id)
        if promised.done():
            return True
        if seconds == 0 or (seconds is not None and self.held >= HELD):
            self._keep(operation_id, promised)
            return False
        self.held += 1
        try:
            await _first(promised, stopping, seconds)
        finally:
            self.held -= 1
        if not promised.done():
            self._keep(operation_id, promised)
        return promised.done()

    def told(self, operation_id: str) -> Json:
        """The operation as a client is told of it; numbers of results may be numpy arrays. Raises Forgotten."""
        promised = self._table.get(operation_id)
        if not promised.done():
            return {"id": operation_id, "status": "pending", **self._pending(operation_id)}
        try:
            error = promised.exception()
            if error is None:
                return {"id": operation_id, "status": "done", "response": promised.result()()}
        except Exception as failed:  # noqa: BLE001 -- what cannot be written down is that operation's failure
            error = failed
        return {"id": operation_id, **_failure(error)}

    def _keep(self, operation_id: str, promised: _Promised) -> None:
        """As one that nobody has asked for yet: it stays until somebody does."""
        self._table.add(operation_id, promised, waits_for=promised.waits_for)

    def _pending(self, operation_id: str) -> Json:
        reason = self._table.waits_for(operation_id)
        return {} if reason is None else {"pending_info": {"code": "queued", "message": reason}}


async def _first(promised: _Promised, stopping: asyncio.Event | None, seconds: float | None) -> None:
    """Wait for the promise, the end of the server, or the end of the time. Others may wait for the same promise."""
    waiter = asyncio.wrap_future(promised)
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, so asyncio does not complain
    ends: set[asyncio.Future[Any]] = {waiter}
    if stopping is not None:
        ends.add(asyncio.ensure_future(stopping.wait()))
    try:
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends - {waiter}:
            end.cancel()


def _settle(promised: _Promised, encode: Encode, future: "Future[Any]") -> None:
    error = None if future.cancelled() else future.exception()
    if future.cancelled():
        promised.set_exception(asyncio.CancelledError("the request was cancelled"))
    elif error is not None:
        promised.set_exception(error)
    else:
        promised.set_result(partial(encode, future.result()))


def _failure(error: BaseException) -> Json:
    told = answer_error(error)[1]
    return {
        "status": "error",
        "error": told["error"],
        "error_code": told["error"],
        "error_message": told["message"],
        "error_details": {},
        "retryable": False,
    }
