"""A backend in processes of its own, as a backend: whoever calls it does not see that they come and go."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from weaver.backend import Pass
from weaver.domain import ForwardBackwardResult, LoraSpec, ModelState, OptimParams
from weaver.errors import Stopped, WeaverError, WorkerLost
from weaver.workers.group import Diverged, Ended, Group, RanksLost, agreed
from weaver.workers.kept_models import KeptModel
from weaver.workers.messages import Call, Done, LoadLosses, SentPass

log = logging.getLogger(__name__)
Outcome = ForwardBackwardResult | WeaverError
Value = TypeVar("Value")


class RankCalls:
    """The contract `weaver.backend.Backend`, said to one group as it is: it may be lost, and then raises RanksLost."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._losses: dict[str, WeaverError | None] = {}

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        self._ask("create_model", model_id, lora)

    def drop_model(self, model_id: str) -> None:
        self._ask("drop_model", model_id)

    def forward_backward(self, passes: Sequence[Pass]) -> Sequence[Outcome]:
        """A pass whose loss a process has not is an error for that pass only."""
        wrong = [self._missing(one) for one in passes]
        runnable = [SentPass.of(one) for one, error in zip(passes, wrong, strict=True) if error is None]
        found = iter(self._ask("forward_backward", runnable) if runnable else ())
        return [next(found) if error is None else error for error in wrong]

    def optim_step(self, model_id: str, params: OptimParams) -> Mapping[str, float]:
        metrics: Mapping[str, float] = self._ask("optim_step", model_id, params)
        return metrics

    def export_state(self, model_id: str, *, optimizer: bool) -> ModelState:
        state: ModelState = self._ask("export_state", model_id, optimizer=optimizer)
        return state

    def import_state(self, model_id: str, state: ModelState) -> None:
        self._ask("import_state", model_id, state)

    def close(self) -> None:
        self.group.close()

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return agreed(self.group.call(Call(method, args, kwargs))).value

    def _missing(self, one: Pass) -> WeaverError | None:
        """What is wrong with its loss in any of the processes; each is asked once for a name."""
        name = one.loss.name
        if one.loss.graph is None and name not in self._losses:
            replies = self.group.call(LoadLosses((name,)))
            agreed(replies)
            found = [reply.value[name] for reply in replies if isinstance(reply, Done)]
            self._losses[name] = next((error for error in found if error is not None), None)
        return self._losses.get(name)


class GroupBackend:
    """See `weaver.backend.Backend`. Starts `start(ended)`, and again whenever a process of it is gone.

    What has happened happened once: a call counts when all processes have done it, and what has counted is repeated in
    the next group. A call that a group was lost in runs again there, once; then it fails, and has not happened.
    """

    def __init__(self, start: Callable[[Ended], Group]) -> None:
        """Raises what opening the backend raised, or WorkerLost."""
        self._start, self._kept = start, dict[str, KeptModel]()
        self._lock = threading.RLock()  # one thread calls; another notices that a process ended while nobody called
        self._closed = False
        self._calls: RankCalls | None = None
        self._started = 0  # groups, and the number of the last one that opened the backend
        self._opened = 0
        try:
            self._living()
        except RanksLost as lost:
            raise WorkerLost(f"{lost} while the base model was being loaded; its own lines say why") from lost

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes there are now, in the order of their ranks."""
        with self._lock:
            return () if self._calls is None else self._calls.group.pids

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        with self._lock:
            self._do("create_model", lambda calls: calls.create_model(model_id, lora))
            self._kept[model_id] = KeptModel(lora)

    def drop_model(self, model_id: str) -> None:
        with self._lock:
            self._kept.pop(model_id, None)
            self._do("drop_model", lambda calls: calls.drop_model(model_id))

    def forward_backward(self, passes: Sequence[Pass]) -> Sequence[Outcome]:
        with self._lock:
            outcomes, seconds = self._do("forward_backward", lambda calls: calls.forward_backward(passes))
            counted: dict[str, list[Pass]] = {}
            for one, outcome in zip(passes, outcomes, strict=True):
                if one.backward and not isinstance(outcome, WeaverError):
                    counted.setdefault(one.model_id, []).append(one)
            for model_id, mine in counted.items():
                self._kept[model_id].ran(tuple(mine), seconds / len(counted))
        return outcomes

    def optim_step(self, model_id: str, params: OptimParams) -> Mapping[str, float]:
        with self._lock:
            metrics, seconds = self._do("optim_step", lambda calls: calls.optim_step(model_id, params))
            kept = self._kept[model_id]
            kept.stepped(params, seconds)
            if kept.wants_copy:
                self._copy(model_id, kept)
        return metrics

    def export_state(self, model_id: str, *, optimizer: bool) -> ModelState:
        with self._lock:
            state, _ = self._do("export_state", lambda calls: calls.export_state(model_id, optimizer=optimizer))
            if optimizer:
                self._kept[model_id].copied(state)
        return state

    def import_state(self, model_id: str, state: ModelState) -> None:
        with self._lock:
            self._do("import_state", lambda calls: calls.import_state(model_id, state))
            self._kept[model_id].replaced(state)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._kept.clear()
            if self._calls is not None:
                self._calls.close()

    def _copy(self, model_id: str, kept: KeptModel) -> None:
        """The step has happened, whatever becomes of the copy; without it more is repeated when a group is lost."""
        try:
            state, seconds = self._do("copy", lambda calls: calls.export_state(model_id, optimizer=True))
            kept.copied(state, seconds)
        except WeaverError as error:
            log.warning("no copy of model %s could be taken: %s", model_id, error)

    def _do(self, name: str, call: Callable[[RankCalls], Value]) -> tuple[Value, float]:
        """What `call` returns and how long it took, once more in a new group where the first was lost."""
        try:
            return self._tried(call)
        except RanksLost as lost:
            log.warning("%s during %s; all start again, and it runs once more", lost, name)
        try:
            return self._tried(call)
        except RanksLost as lost:
            raise WorkerLost(
                f"{lost} during {name}, for the second time; it did not happen, nothing else is lost"
            ) from lost

    def _tried(self, call: Callable[[RankCalls], Value]) -> tuple[Value, float]:
        calls = self._living()
        start = time.monotonic()
        try:
            return call(calls), time.monotonic() - start
        except (RanksLost, Diverged):
            self._abandon(calls)
            raise

    def _living(self) -> RankCalls:
        """The group, started again with every model as it was where there is none."""
        if self._closed:
            raise Stopped("the backend is closed")
        if self._calls is not None and self._calls.group.has_lost:
            self._abandon(self._calls)
        if self._calls is None:
            self._started += 1
            number = self._started
            calls = RankCalls(self._start(partial(self._on_end, number)))
            try:
                for model_id, kept in self._kept.items():
                    kept.bring_back(model_id, calls)
            except BaseException:
                calls.group.kill()
                raise
            self._calls, self._opened = calls, number
        return self._calls

    def _abandon(self, calls: RankCalls) -> None:
        calls.group.kill()
        self._calls = None

    def _on_end(self, number: int) -> None:
        """A process of that group has ended. Nobody may be calling: then all start again at once, not when somebody
        does. A group that did not come so far as to open the backend is not tried again: it would go on for ever.
        """
        with self._lock:
            if self._closed or number != self._opened:
                return
            self._opened = 0
            log.warning("a process of the backend has ended; all start again")
            try:
                self._living()
            except (RanksLost, WeaverError) as error:  # the next call tries again, and tells its caller
                log.warning("the backend's processes could not be started again: %s", error)
