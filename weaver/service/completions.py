"""Which samples of a client have settled: for clients that wait for many requests with one poll."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from weaver.errors import Forgotten
from weaver.service.records import Completion

REMEMBERED = 100_000
"""How many completions are kept for a client that does not ask for them."""

CLONE_NUMBERS = 1_000_000_000
"""Every clone of a sampling client numbers its requests in a block of its own of this size."""

Client = tuple[str, int]
"""A sampling session and the number of the clone."""


@dataclass(slots=True)
class _Log:
    """`completions` with their cursors, which ascend; `next` settles with one more."""

    last: int
    completions: deque[tuple[int, Completion]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    next: "Future[None]" = field(default_factory=Future)


def client_of(sampling_session_id: str, seq_id: int) -> Client:
    return sampling_session_id, seq_id // CLONE_NUMBERS


class Completions:
    """A log per client, read by cursor: what was read up to a cursor is dropped when that cursor comes back.

    Cursors begin at the time of the start, so those of a server that is gone are lower than all of this one.
    """

    def __init__(self) -> None:
        self._first = time.time_ns()
        self._lock = threading.Lock()
        self._logs: dict[Client, _Log] = {}

    def watch(self, client: Client, request_id: str, future: "Future[Any]") -> None:
        """Note in the client's log when the future settles."""
        with self._lock:
            self._logs.setdefault(client, _Log(self._first))
        future.add_done_callback(lambda done: self._note(client, Completion(request_id, not _failed(done))))

    def after(self, client: Client, cursor: int) -> "tuple[list[Completion], int, Future[None]]":
        """What has settled since the cursor was given out, in order, the new cursor, and a future that settles as soon
        as there is more.

        Raises Forgotten for a client of which nothing was ever accepted: what it waits for was lost with another
        server, and it shall hear of that rather than wait for ever.
        """
        with self._lock:
            log = self._logs.get(client)
            if log is None:
                raise Forgotten(f"nothing was asked of {client[0]!r}, clone {client[1]}, since this server started")
            while log.completions and log.completions[0][0] <= cursor:
                log.completions.popleft()
            return [completion for _, completion in log.completions], log.last, log.next

    def keep(self, is_there: Callable[[str], bool]) -> None:
        """Drop completions of requests whose results are not there any more: nobody who asked for them waits still."""
        with self._lock:
            for log in self._logs.values():
                log.completions = deque((one for one in log.completions if is_there(one[1].request_id)), REMEMBERED)

    def forget_session(self, session_id: str) -> None:
        """Drop the logs of a session's samplers."""
        with self._lock:
            for client in [client for client in self._logs if client[0].startswith(f"{session_id}:")]:
                del self._logs[client]

    def _note(self, client: Client, completion: Completion) -> None:
        with self._lock:
            log = self._logs.get(client)
            if log is None:  # its session has ended
                return
            log.last += 1
            log.completions.append((log.last, completion))
            ready, log.next = log.next, Future()
        ready.set_result(None)


def _failed(future: "Future[Any]") -> bool:
    return future.cancelled() or future.exception() is not None
