"""Tells observers what has settled, each on a thread of its own."""

import logging
import queue
import threading
from collections.abc import Iterable
from typing import Final

from weaver.operators import Observer, Settled

CLOSE_SECONDS: Final = 5.0
"""How long a closing server waits for each observer to hear the rest."""

log = logging.getLogger(__name__)


class Observers:
    """`tell` never waits and never raises: what an observer does not keep up with is dropped, counted and logged."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._each = [_Told(observer) for observer in observers]

    def tell(self, settled: Settled) -> None:
        for told in self._each:
            told.tell(settled)

    def close(self) -> None:
        for told in self._each:
            told.close()


class _Told:
    """One observer, its queue and its thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._dropped = observer, 0
        self._lock = threading.Lock()
        self._waiting: queue.Queue[Settled] = queue.Queue(observer.backlog)
        self._stopped = threading.Event()
        self._arrived = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"weaver-observer-{observer.name}", daemon=True)
        self._thread.start()

    def tell(self, settled: Settled) -> None:
        try:
            self._waiting.put_nowait(settled)
        except queue.Full:
            with self._lock:
                self._dropped += 1
        else:
            self._arrived.release()

    def close(self) -> None:
        """Let it hear what waits; one that takes too long is left behind."""
        self._stopped.set()
        self._arrived.release()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("the observer %r is left behind with %d operations", self._observer.name, self._waiting.qsize())
        self._say_dropped()

    def _run(self) -> None:
        while self._arrived.acquire() and not (self._stopped.is_set() and self._waiting.empty()):
            settled = self._waiting.get()
            try:
                self._observer.observe(settled)
            except Exception:  # a plugin may raise anything; it is told of the next operation all the same
                log.exception("the observer %r failed on %s of %s", self._observer.name, settled.kind, settled.source)
            if self._waiting.empty():
                self._say_dropped()

    def _say_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("the observer %r fell behind: it was not told of %d operations", self._observer.name, dropped)
