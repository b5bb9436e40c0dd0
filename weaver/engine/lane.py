"""One model's operations in the order of their sequence numbers, whatever order they arrive in.

A lane is plain state; the engine owns it and holds its lock around every method.
"""

import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from weaver.domain import ForwardBackward, Operation
from weaver.engine.fingerprint import Fingerprint, differences
from weaver.errors import InvalidInput, SequenceRefused, UserError

REFUSED = "refused"
REMEMBERED = 10_000
"""How many past requests of a lane can still be repeated."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """An accepted operation and the future its client will ask for."""

    seq_id: int
    operation: Operation
    fingerprint: Fingerprint
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    future: "Future[Any]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        # A running future cannot be cancelled: an acknowledged operation happens, whoever stops waiting for it.
        self.future.set_running_or_notify_cancel()


class Refusal:
    """A request that is acknowledged although it is refused; its future says so."""

    def __init__(self, error: UserError) -> None:
        self.request_id = uuid.uuid4().hex
        self.future: Future[Any] = Future()
        self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Accepted:
    fingerprint: Fingerprint
    request_id: str
    kind: str

    def difference(self, kind: str, fingerprint: Fingerprint) -> str:
        if kind != self.kind:
            return f"that was {self.kind}, this is {kind}"
        return f"this {kind} has another {differences(self.fingerprint, fingerprint)}"


class Lane:
    """Accepts numbers in any order, gives work out in theirs.

    A number that was refused is a tombstone. A number that never arrives is given up `gap_seconds` after the lane
    began to wait for it, and refused if it comes later.

    What arrives while a lower number is missing is a part of the call that begins with that number: Tinker's SDK splits
    a large pass, and sends its first part when all others are acknowledged. When one part is refused, none counts.
    `parts` gives the numbers of a call's passes, for a loss that must see them all.
    """

    def __init__(self, model_id: str, gap_seconds: float) -> None:
        self.model_id = model_id
        self.ended = False
        self.failure: Exception | None = None
        self._gap_seconds = gap_seconds
        self._next = 0
        self._waiting: dict[int, Work] = {}
        self._tombstones: set[int] = set()
        self._accepted: dict[int, _Accepted] = {}
        self._gap_since: float | None = None
        self._missing = 0
        self._parts: list[int] = []
        self._calls: dict[int, tuple[int, ...]] = {}
        self._refused_part: UserError | None = None

    def accept(self, seq_id: int, operation: Operation, fingerprint: Fingerprint) -> Work | str:
        """Queue an operation; for an exact repeat, the request id of the first.

        Raises SequenceRefused when the number belongs to another request, was refused, or was given up.
        """
        kind = type(operation).__name__
        if first := self._accepted.get(seq_id):
            if first.fingerprint == fingerprint:
                return first.request_id
            raise SequenceRefused(
                f"seq_id {seq_id} of model {self.model_id} was used by a different request: "
                f"{first.difference(kind, fingerprint)}; a retry must repeat the request exactly"
            )
        if seq_id in self._tombstones or seq_id < self._next:
            raise SequenceRefused(
                f"seq_id {seq_id} of model {self.model_id} comes too late: it was refused before, or given up after "
                f"{self._gap_seconds:g} s; use a new number (next: {max([self._next, *self._waiting]) + 1})"
            )
        begins = seq_id == self._lowest_missing()
        work = Work(seq_id, operation, fingerprint)
        self._waiting[seq_id] = work
        self._remember(seq_id, _Accepted(fingerprint, work.request_id, kind))
        self._parts.append(seq_id)
        if begins:
            self._end_call()
        return work

    def refuse(self, seq_id: int, error: UserError) -> Refusal | str | None:
        """The request of that number was refused: later ones need not wait for it.

        None: tell the client at once. A later part of a call is acknowledged instead (for a repeat: the first one's
        request id), for the SDK sends nothing more, ever, after a part that was refused.
        """
        if first := self._accepted.get(seq_id):
            return first.request_id if first.kind == REFUSED else None
        if seq_id in self._tombstones or seq_id < self._next:
            return None
        begins = seq_id == self._lowest_missing()
        self._tombstones.add(seq_id)
        self._refused_part = self._refused_part or error
        if begins:
            self._end_call()
            return None
        refusal = Refusal(error)
        self._remember(seq_id, _Accepted(Fingerprint(), refusal.request_id, REFUSED))
        return refusal

    def head(self, now: float) -> Work | None:
        """The next work, if it is its turn at time `now`."""
        while True:
            if self._next in self._tombstones:
                self._tombstones.discard(self._next)
                self._advance(self._next + 1)
            elif self._next in self._waiting:
                return self._waiting[self._next]
            elif not self._waiting or not self._gave_up(now):
                return None

    def pop(self) -> Work:
        """Take the head."""
        work = self._waiting.pop(self._next)
        self._calls.pop(self._next, None)
        self._advance(self._next + 1)
        return work

    def parts(self, seq_id: int) -> tuple[int, ...]:
        """The consecutive numbers, from the first on, of the passes that came as one call with this one; only its own
        for one that came alone, none for a part whose first never came."""
        return self._calls.get(seq_id, (seq_id,))

    def drain(self) -> list[Work]:
        """Take everything that waits, in order."""
        left = [self._waiting[seq_id] for seq_id in sorted(self._waiting)]
        self._waiting.clear()
        self._parts.clear()
        return left

    @property
    def empty(self) -> bool:
        return not self._waiting

    @property
    def free(self) -> int:
        """A number after all that have come."""
        return max([self._next, *(number + 1 for number in (*self._waiting, *self._tombstones))])

    @property
    def missing(self) -> int | None:
        """The number that what waits here waits for, where it has not arrived."""
        arrived = self._next in self._waiting or self._next in self._tombstones
        return None if arrived or not self._waiting else self._next

    def deadline(self) -> float | None:
        """When the lane will give up the number it waits for."""
        return None if self._gap_since is None else self._gap_since + self._gap_seconds

    def _gave_up(self, now: float) -> bool:
        if self._gap_since is None:
            self._gap_since = now
        if now - self._gap_since < self._gap_seconds:
            return False
        self._end_call(complete=False)
        self._advance(min(self._waiting.keys() | {seq for seq in self._tombstones if seq > self._next}))
        return True

    def _lowest_missing(self) -> int:
        self._missing = max(self._missing, self._next)
        while self._missing in self._waiting or self._missing in self._tombstones:
            self._missing += 1
        return self._missing

    def _end_call(self, *, complete: bool = True) -> None:
        """All parts of a call are here, or (not `complete`) its first was given up. Where one was refused, the others
        fail; none of them can have run."""
        if error := self._refused_part:
            for seq_id in self._parts:
                work = self._waiting[seq_id]
                if isinstance(work.operation, ForwardBackward):
                    del self._waiting[seq_id]
                    self._tombstones.add(seq_id)
                    work.future.set_exception(InvalidInput(f"another part of the same call was refused: {error}"))
        self._note_parts(complete)
        self._parts, self._refused_part = [], None

    def _note_parts(self, complete: bool) -> None:
        """Remember which of the parts are passes that follow each other, or that the first of them never came."""
        waiting = [self._waiting[seq_id] for seq_id in sorted(self._parts) if seq_id in self._waiting]
        together: tuple[int, ...] = ()
        for work in waiting:
            if not isinstance(work.operation, ForwardBackward):
                continue
            follows = together and work.seq_id == together[-1] + 1
            together = (*together, work.seq_id) if follows else (work.seq_id,)
            if len(together) > 1 or not complete:
                self._calls.update(dict.fromkeys(together, together if complete else ()))

    def _advance(self, seq_id: int) -> None:
        self._next, self._gap_since = seq_id, None

    def _remember(self, seq_id: int, accepted: _Accepted) -> None:
        self._accepted[seq_id] = accepted
        if len(self._accepted) > REMEMBERED:
            self._accepted.pop(next(iter(self._accepted)))
