"""This wire's operations in the service's lanes.

A client numbers passes, steps and exports of a model (`seq_id`), with gaps where a submission failed, and leaves saves
and loads without a number. The service's lanes want every number. So each accepted operation gets the lane's next one
in the order of arrival; a client's number only tells a repeat, and where requests overtook each other.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from weaver.domain import Operation
from weaver.engine.lane import REMEMBERED
from weaver.errors import Forgotten, SequenceRefused
from weaver.service import Service, Ticket

GRACE_SECONDS: Final = 1.0
"""How long a request waits for one of a lower number that may be on its way over another connection."""
READING_SECONDS: Final = 60.0
"""How long it waits while another request of the model is still being read."""


@dataclass(slots=True)
class _Line:
    """`seen` is the client's highest number so far, `numbers` are the lane's for the client's. `last` is the latest
    operation, where it came without a number."""

    seen: int = 0
    reading: int = 0
    numbers: dict[int, int] = field(default_factory=dict)
    last: tuple[Operation, Ticket] | None = None
    changed: "Future[None]" = field(default_factory=Future)

    @property
    def is_unused(self) -> bool:
        return not (self.reading or self.seen or self.numbers or self.last)


class Numbering:
    """Every method may be called from any thread, on any event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}

    @contextmanager
    def reading(self, model_id: str) -> Iterator[None]:
        """A request of this model is being read; those of higher numbers that are here already wait for it."""
        line = self._line(model_id)
        with self._lock:
            line.reading += 1
        try:
            yield
        finally:
            with self._lock:
                line.reading -= 1
                _tell(line)
                if line.is_unused:
                    self._lines.pop(model_id, None)

    async def turn(self, model_id: str, seq_id: int) -> None:
        """Wait until every lower number has been seen, or will not come."""
        line, began = self._line(model_id), time.monotonic()
        while True:
            with self._lock:
                changed, misses, reading = line.changed, seq_id > line.seen + 1, line.reading
            left = began + (READING_SECONDS if reading else GRACE_SECONDS) - time.monotonic()
            if not misses or left <= 0:
                return
            await asyncio.wait({asyncio.wrap_future(changed)}, timeout=min(left, GRACE_SECONDS))

    def came(self, model_id: str, seq_id: int) -> None:
        """The request of that number was accepted or refused: higher ones need not wait for it."""
        line = self._line(model_id)
        with self._lock:
            line.seen = max(line.seen, seq_id)
            _tell(line)

    def knows(self, model_id: str, seq_id: int) -> bool:
        """Whether a request of that number was accepted: another is a repeat of it, or is refused."""
        with self._lock:
            line = self._lines.get(model_id)
            return line is not None and seq_id in line.numbers

    def submit(self, service: Service, model_id: str, seq_id: int | None, operation: Operation) -> Ticket:
        """Accept an operation of a model as the next one; an exact repeat of `seq_id` gets the first one's ticket.
        So does one without a number when it follows its like, for the client sends a request again whose answer was
        lost; unless that failed.

        Raises what the service raises; a number whose request was refused may be used again.
        """
        line = self._line(model_id)
        with self._lock:
            if seq_id is None and (ticket := _repeated(line, operation, service)):
                return ticket
            first = None if seq_id is None else line.numbers.get(seq_id)
            number = service.free_number(model_id) if first is None else first
            try:
                ticket = service.submit(model_id, number, operation)
            except SequenceRefused as error:
                raise _refused(seq_id, first, error) from error
            line.last = (operation, ticket) if seq_id is None else None
            if seq_id is not None and first is None:
                line.numbers[seq_id] = number
                if len(line.numbers) > REMEMBERED:
                    line.numbers.pop(next(iter(line.numbers)))
            return ticket

    def last_seen(self, model_id: str) -> int:
        """The highest number that a client has used; 0 when none."""
        with self._lock:
            line = self._lines.get(model_id)
            return 0 if line is None else line.seen

    def repeats(self, service: Service, model_id: str, operation: Operation) -> bool:
        """Whether an operation without a number is the latest one once more."""
        with self._lock:
            line = self._lines.get(model_id)
            return line is not None and _repeated(line, operation, service) is not None

    def models(self) -> tuple[str, ...]:
        """Of which anything is remembered, and no request is being read."""
        with self._lock:
            return tuple(model_id for model_id, line in self._lines.items() if not line.reading)

    def forget(self, model_id: str) -> None:
        """The model is gone."""
        with self._lock:
            self._lines.pop(model_id, None)

    def _line(self, model_id: str) -> _Line:
        with self._lock:
            return self._lines.setdefault(model_id, _Line())


def _tell(line: _Line) -> None:
    told, line.changed = line.changed, Future()
    told.set_result(None)


def _repeated(line: _Line, operation: Operation, service: Service) -> Ticket | None:
    """The ticket of the latest operation where this is the same one, and that has not failed."""
    if line.last is None or line.last[0] != operation:
        return None
    try:
        future = service.future(line.last[1].request_id)
    except Forgotten:
        return None
    return None if future.done() and future.exception() is not None else line.last[1]


def _refused(seq_id: int | None, first: int | None, error: SequenceRefused) -> SequenceRefused:
    if first is None:
        return error
    why = str(error).partition(": ")[2]
    return SequenceRefused(f"seq_id {seq_id} was used by a different request of this model: {why}")
