"""What was done, as it settles: tokens counted by the hour, and when each operation of a session came and ended."""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from weaver.domain import ForwardBackward, SampleRequest, SampleResult, SaveExternal, SaveForSampler, SaveState
from weaver.engine.lane import Work
from weaver.listing import Listing, UsageKey
from weaver.operators import Settled

HOUR: Final = 3600
TRAINED, PROMPT, CACHED_PROMPT, SAMPLED, CHECKPOINT = "trained", "prompt", "cached_prompt", "sampled", "checkpoint"
"""What is counted: tokens, and checkpoints."""

TRACED_SESSIONS: Final = 100
TRACED_OPERATIONS: Final = 10_000
"""Of the newest so many sessions the newest so many operations can be told; older ones are forgotten."""
TRACED_ALTOGETHER: Final = 100_000
"""Past this, the session that has been silent longest is forgotten."""


@dataclass(slots=True)
class Span:
    """One operation of a model or sampler. `ended` and `succeeded` are None while it waits or runs."""

    kind: str
    source: str
    seq_id: int
    began: float
    ended: float | None = None
    succeeded: bool | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """A quantity of one kind in the hour from `began` on (seconds since the epoch)."""

    began: int
    session_id: str
    base_model: str | None
    project_id: str | None
    kind: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Report:
    """Usage, hour by hour, and what the sessions in it say of themselves."""

    usage: tuple[Usage, ...]
    user_metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Meter:
    """Every method may be called from any thread. What was counted is written down by `flush`.

    `tell` hears of each operation as it settles, on whatever thread settles it.
    """

    def __init__(self, listing: Listing, clock: Callable[[], float], tell: Callable[[Settled], None]) -> None:
        self._listing, self._clock, self._tell = listing, clock, tell
        self._lock = threading.Lock()
        self._counted: Counter[UsageKey] = Counter()
        self._spans: OrderedDict[str, deque[Span]] = OrderedDict()

    def training(self, model_id: str, work: Work) -> None:
        """Watch an accepted operation of a model."""
        span, quantities = self._span(type(work.operation).__name__, model_id, work.seq_id), _trained(work)
        work.future.add_done_callback(lambda done: self._settle(span, done, quantities))

    def sampling(self, key: tuple[str, int], request: SampleRequest, future: "Future[SampleResult]") -> None:
        """Watch a sample request, known by its sampling session and number."""
        span, prompt_tokens = self._span("Sample", *key), len(request.prompt_n)
        future.add_done_callback(lambda done: self._settle(span, done, _sampled(done, prompt_tokens)))

    def now(self) -> float:
        """The time by which it measures."""
        return self._clock()

    def spans(self, session_id: str) -> tuple[Span, ...]:
        """A session's operations in the order in which they came."""
        with self._lock:
            return tuple(self._spans.get(session_id, ()))

    def report(self, start: float, end: float) -> Report:
        """Of the hours that begin from `start` on and before `end`: in order, the largest quantity first."""
        self.flush()
        rows = self._listing.usage(int(start), int(end))
        sums: Counter[tuple[int, str, str | None, str | None, str]] = Counter()
        for row in rows:
            sums[row["began"], row["session_id"], row["base_model"], row["project_id"], row["kind"]] += row["quantity"]
        usage = [Usage(*key, quantity=quantity) for key, quantity in sums.items()]
        usage.sort(key=lambda one: (one.began, -one.quantity))
        return Report(tuple(usage), {row["session_id"]: row["user_metadata"] for row in rows})

    def flush(self) -> None:
        with self._lock:
            counted, self._counted = self._counted, Counter()
        self._listing.add_usage(counted)

    def _span(self, kind: str, source: str, seq_id: int) -> Span:
        span, session_id = Span(kind, source, seq_id, self._clock()), source.partition(":")[0]
        with self._lock:
            self._spans.setdefault(session_id, deque(maxlen=TRACED_OPERATIONS)).append(span)
            self._spans.move_to_end(session_id)
            while len(self._spans) > TRACED_SESSIONS or sum(map(len, self._spans.values())) > TRACED_ALTOGETHER:
                self._spans.popitem(last=False)
        return span

    def _settle(self, span: Span, done: "Future[Any]", quantities: Iterable[tuple[str, int]]) -> None:
        error, now = _error_of(done), self._clock()
        hour, counted = int(now) // HOUR * HOUR, dict(quantities) if error is None else {}
        with self._lock:
            span.ended, span.succeeded = now, error is None
            for kind, quantity in counted.items():
                self._counted[hour, span.source, kind] += quantity
        self._tell(Settled(span.kind, span.source, span.seq_id, span.began, now, error, counted))


def _error_of(done: "Future[Any]") -> str | None:
    if done.cancelled():
        return "cancelled"
    error = done.exception()
    return None if error is None else str(error) or type(error).__name__


def _trained(work: Work) -> Iterable[tuple[str, int]]:
    match work.operation:
        case ForwardBackward(data=data):
            return [(TRAINED, sum(len(datum.tokens_T) for datum in data))]
        case SaveForSampler(name=None):
            return []
        case SaveState() | SaveForSampler() | SaveExternal():
            return [(CHECKPOINT, 1)]
        case _:
            return []


def _sampled(done: "Future[SampleResult]", prompt_tokens: int) -> Iterable[tuple[str, int]]:
    if done.cancelled() or done.exception() is not None:
        return []
    result = done.result()
    cached = result.cached_prompt_tokens
    drawn = sum(len(sequence.tokens) for sequence in result.sequences)
    return [(PROMPT, prompt_tokens - cached), (CACHED_PROMPT, cached), (SAMPLED, drawn)]
