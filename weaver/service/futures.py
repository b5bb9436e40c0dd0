"""Futures by request id: kept until fetched, a grace period longer, then dropped.

What has settled is kept as its result alone. The future it settled in goes, and with it the data of the operation, that
its callbacks hold; so does an error's traceback, which holds all that its functions had at hand, and stays as text.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from weaver.errors import Forgotten, InvalidInput

SWEEP_SECONDS = 10.0


def _nothing() -> None:
    return None


@dataclass(slots=True)
class _Kept:
    future: "Future[Any]"
    added: float
    cancellable: bool
    waits_for: Callable[[], str | None]
    asked: float | None = None


class FutureTable:
    """A result stays `result_seconds` after it was last asked for, or `unfetched_seconds` if nobody asks."""

    def __init__(
        self, result_seconds: float, unfetched_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._result_seconds, self._unfetched_seconds, self._clock = result_seconds, unfetched_seconds, clock
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._swept = clock()

    def add(
        self,
        request_id: str,
        future: "Future[Any]",
        *,
        cancellable: bool = False,
        waits_for: Callable[[], str | None] = _nothing,
    ) -> None:
        """Keep a future. `waits_for` says in plain words what it waits for, or None."""
        with self._lock:
            self._sweep()
            before = self._kept.get(request_id)
            self._kept[request_id] = _Kept(future, self._clock(), cancellable, waits_for)
        if before is None or before.future is not future:
            future.add_done_callback(lambda done: self._settle(request_id, done))

    def get(self, request_id: str) -> "Future[Any]":
        """The future of an acknowledged request. Raises Forgotten when it was dropped or never was."""
        with self._lock:
            self._sweep()
            kept = self._kept.get(request_id)
            if kept is None:
                raise Forgotten(
                    f"there is no request {request_id!r}: its result was dropped, or it is not of this server"
                )
            kept.asked = self._clock()
            return kept.future

    def waits_for(self, request_id: str) -> str | None:
        """What a request that has not settled waits for; None when it runs, will in its turn, or is not here."""
        with self._lock:
            kept = self._kept.get(request_id)
        return None if kept is None or kept.future.done() else kept.waits_for()

    def drop(self, request_ids: Iterable[str]) -> None:
        """Their client has these results."""
        with self._lock:
            for request_id in request_ids:
                kept = self._kept.get(request_id)
                if kept is not None and kept.cancellable and kept.future.done():
                    del self._kept[request_id]

    def cancel(self, request_id: str) -> None:
        """Stop what nobody waits for any more; a request that is done, or that was never here, needs no stopping.
        Raises InvalidInput for one that is not cancellable."""
        with self._lock:
            kept = self._kept.get(request_id)
        if kept is None:
            return
        if not kept.cancellable:
            raise InvalidInput(f"request {request_id!r} is no sample: a training operation that was accepted happens")
        kept.future.cancel()

    def knows(self, request_id: str) -> bool:
        """Whether the request's result can still be asked for."""
        with self._lock:
            return request_id in self._kept

    def _settle(self, request_id: str, done: "Future[Any]") -> None:
        alone = _result_alone(done)
        with self._lock:
            kept = self._kept.get(request_id)
            if kept is not None and kept.future is done:
                kept.future, kept.waits_for = alone, _nothing

    def _sweep(self) -> None:
        now = self._clock()
        if now - self._swept < SWEEP_SECONDS:
            return
        self._swept = now
        for request_id in [request_id for request_id, kept in self._kept.items() if self._stale(kept, now)]:
            del self._kept[request_id]

    def _stale(self, kept: _Kept, now: float) -> bool:
        if not kept.future.done():
            return False
        if kept.asked is None:
            return now - kept.added > self._unfetched_seconds
        return now - kept.asked > self._result_seconds


def _result_alone(done: "Future[Any]") -> "Future[Any]":
    """A future with the same result, error or end, and nothing else."""
    bare: Future[Any] = Future()
    if done.cancelled():
        bare.cancel()
        bare.set_running_or_notify_cancel()
    elif error := done.exception():
        _drop_frames(error)
        bare.set_exception(error)
    else:
        bare.set_result(done.result())
    return bare


def _drop_frames(error: BaseException) -> None:
    """Of the error and of those that led to it. Where they came from is told in a note."""
    led = {id(error): error}
    left = [error]
    while left:
        one = left.pop()
        before = [each for each in (one.__cause__, one.__context__) if each is not None and id(each) not in led]
        led.update((id(each), each) for each in before)
        left += before
    if any(one.__traceback__ is not None for one in led.values()):
        error.add_note("".join(traceback.format_exception(error)))
    for one in led.values():
        one.__traceback__ = None
