"""One base model's training: lanes in, one thread that steps, futures out."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from weaver.domain import CreateFromState, CreateModel, ForwardBackward, ForwardBackwardResult, Operation
from weaver.engine.calls import apart, merged
from weaver.engine.executor import Executor
from weaver.engine.fingerprint import Fingerprint
from weaver.engine.lane import Lane, Refusal, Work
from weaver.errors import Forgotten, InvalidInput, ServerError, Stopped, UnknownName, UserError, WeaverError

STEP_TOKENS = 16_384
"""How many tokens of passes one step takes, at most one pass more: what other models wait for their turn."""

_INCOMPLETE: Final = (
    "the first part of this call never arrived, and its loss must see all data of the call; send the whole call again"
)

log = logging.getLogger(__name__)
Call = tuple[Work, ...]
"""One operation, or the parts of a pass whose loss must see them all."""
Taken = list[tuple[Lane, Call]]


class Engine:
    """Orders each model's operations, packs passes of all models, and runs one thing at a time.

    `step()` does one round and can be driven by hand; `start()` runs it on a thread until `close()`.
    """

    def __init__(self, executor: Executor, gap_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor, self._gap_seconds, self._clock = executor, gap_seconds, clock
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(self, model_id: str, seq_id: int, operation: Operation, fingerprint: Fingerprint) -> Work | str:
        """Put an operation in its model's lane (a create makes the lane); an exact repeat gives the first's request id.

        Raises UnknownName, Forgotten, Stopped or SequenceRefused.
        """
        with self._changed:
            if self._stopped:
                raise Stopped("the server is shutting down")
            if isinstance(operation, CreateModel | CreateFromState):
                self._lanes.setdefault(model_id, Lane(model_id, self._gap_seconds))
            lane = self._lane(model_id)
            accepted = lane.accept(seq_id, operation, fingerprint)
            self._changed.notify()
        return accepted

    def refuse(self, model_id: str, seq_id: int, error: UserError) -> Refusal | str | None:
        """A request of that number was refused: later ones must not wait for it. See `Lane.refuse`."""
        with self._changed:
            if model_id not in self._lanes:
                return None
            refusal = self._lanes[model_id].refuse(seq_id, error)
            self._changed.notify()
        return refusal

    def waits_for(self, model_id: str) -> str | None:
        """What keeps a model's operations waiting, in plain words; None when they run, or will in their turn."""
        if self._executor.opening:
            return "the base model is being loaded for training"
        with self._changed:
            missing = self._lanes[model_id].missing if model_id in self._lanes else None
        return None if missing is None else f"the request with seq_id {missing} has not arrived; later ones wait for it"

    def free_number(self, model_id: str) -> int:
        """A sequence number for an operation that shall run after all that have come. Raises UnknownName, Forgotten."""
        with self._changed:
            return self._lane(model_id).free

    def end_lane(self, model_id: str) -> None:
        """Take nothing more for a model; free it when what it has accepted is done."""
        with self._changed:
            if model_id in self._lanes:
                self._lanes[model_id].ended = True
                self._changed.notify()

    def step(self) -> bool:
        """Take what may run now, run it, settle it. False when there was nothing."""
        self._drop_ended()
        taken = self._take()
        if not taken:
            return False
        if isinstance(taken[0][1][0].operation, ForwardBackward):
            self._run_passes(taken)
        else:
            for lane, (work,) in taken:
                self._run_barrier(lane, work)
        return True

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="weaver-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the step at hand, fail what waits with `Stopped`, free the backend."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for lane in self._lanes.values():
            for work in lane.drain():
                work.future.set_exception(Stopped("the server shut down before this operation ran"))
        self._executor.close()

    def _run(self) -> None:
        while not self._stopped:
            if not self.step():
                self._wait()

    def _wait(self) -> None:
        """Until something changes or a gap is given up. Work that came since the step is seen, not waited for."""
        with self._changed:
            now = self._clock()
            if self._stopped or any(lane.head(now) for lane in self._lanes.values()):
                return
            deadlines = [lane.deadline() for lane in self._lanes.values()]
            left = [deadline - now for deadline in deadlines if deadline is not None]
            if not any(lane.ended and lane.empty for lane in self._lanes.values()):
                self._changed.wait(min(left, default=None))

    def _lane(self, model_id: str) -> Lane:
        lane = self._lanes.get(model_id)
        if lane is None:
            raise UnknownName(f"there is no model {model_id!r} here")
        if lane.ended:
            raise Forgotten(f"the session of model {model_id!r} has ended")
        return lane

    def _take(self) -> Taken:
        """Every barrier that is its lane's turn; if none, passes of all lanes in turn up to the budget."""
        with self._changed:
            now = self._clock()
            heads = [(lane, work) for lane in self._lanes.values() if (work := lane.head(now))]
            barriers = [lane for lane, work in heads if not isinstance(work.operation, ForwardBackward)]
            if barriers:
                return [(lane, (lane.pop(),)) for lane in barriers]
            return list(self._take_passes([lane for lane, _ in heads], now))

    def _take_passes(self, lanes: list[Lane], now: float) -> Iterator[tuple[Lane, Call]]:
        tokens = 0
        for lane in lanes:
            if tokens >= STEP_TOKENS:
                return  # this lane and those after it keep their places before those that have had their turn
            self._lanes.move_to_end(lane.model_id)
            while (work := lane.head(now)) and isinstance(work.operation, ForwardBackward) and tokens < STEP_TOKENS:
                if call := self._take_call(lane, work):
                    tokens += sum(len(datum.tokens_T) for part in _passes(call) for datum in part.data)
                    yield lane, call

    def _take_call(self, lane: Lane, head: Work) -> Call:
        """The head, with the other parts of its call where its loss must see them all. Where it must and the first part
        never came, nothing: the head has failed."""
        parts = lane.parts(head.seq_id)
        if parts == (head.seq_id,) or not any(map(self._executor.sees_batch, _passes((head,)))):
            return (lane.pop(),)
        if not parts:
            lane.pop().future.set_exception(InvalidInput(_INCOMPLETE))
        return tuple(lane.pop() for _ in parts)

    def _run_passes(self, taken: Taken) -> None:
        ready = [(lane, call) for lane, call in taken if not _settle_broken(lane, call)]
        whole, runnable = [], []
        for lane, call in ready:
            try:
                whole.append((lane.model_id, merged(_passes(call))))
                runnable.append(call)
            except InvalidInput as error:
                _settle(call, error)
        try:
            outcomes = self._executor.run_passes(whole) if whole else ()
        except Exception as error:  # noqa: BLE001 -- whatever a backend raises becomes these operations' failure
            outcomes = [_as_weaver_error(error)] * len(whole)
        for call, outcome in zip(runnable, outcomes, strict=True):
            _settle(call, outcome)

    def _run_barrier(self, lane: Lane, work: Work) -> None:
        if _settle_broken(lane, (work,)):
            return
        try:
            work.future.set_result(self._executor.run(lane.model_id, work.operation))
        except Exception as error:  # noqa: BLE001 -- whatever a backend raises becomes this operation's failure
            failure = _as_weaver_error(error)
            if isinstance(work.operation, CreateModel | CreateFromState):
                lane.failure = failure
            work.future.set_exception(failure)

    def _drop_ended(self) -> None:
        with self._changed:
            ended = [lane.model_id for lane in self._lanes.values() if lane.ended and lane.empty]
            for model_id in ended:
                del self._lanes[model_id]
        for model_id in ended:
            try:
                self._executor.drop_model(model_id)
            except Exception:  # every other model still waits for this thread
                log.exception("the backend could not free the model %s", model_id)


def _passes(call: Call) -> list[ForwardBackward]:
    return [work.operation for work in call if isinstance(work.operation, ForwardBackward)]


def _settle(call: Call, outcome: ForwardBackwardResult | WeaverError) -> None:
    for work, mine in zip(call, apart(outcome, _passes(call)), strict=True):
        if isinstance(mine, WeaverError):
            work.future.set_exception(mine)
        else:
            work.future.set_result(mine)


def _settle_broken(lane: Lane, call: Call) -> bool:
    """Fail work of a model that could not be created."""
    if lane.failure is None:
        return False
    for work in call:
        work.future.set_exception(type(lane.failure)(f"model {lane.model_id} could not be created: {lane.failure}"))
    return True


def _as_weaver_error(error: Exception) -> WeaverError:
    if isinstance(error, WeaverError):
        return error
    log.exception("an operation failed", exc_info=error)
    return ServerError(f"{type(error).__name__}: {error}")
