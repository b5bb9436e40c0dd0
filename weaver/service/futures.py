"""Futures by request id: kept until fetched, a grace period longer, then dropped."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from weaver.errors import Forgotten, InvalidInput

SWEEP_SECONDS = 10.0


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
        waits_for: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Keep a future. `waits_for` says in plain words what it waits for, or None."""
        with self._lock:
            self._sweep()
            self._kept[request_id] = _Kept(future, self._clock(), cancellable, waits_for)

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
