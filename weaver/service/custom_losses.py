"""Losses that clients make of graphs, each for its own session, beside those that plugins bring."""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from weaver.domain import CustomLossCreated, ForwardBackward, LossGraph
from weaver.engine.fingerprint import Fingerprint, differences, fingerprint
from weaver.errors import InvalidInput, SequenceRefused, UnknownName
from weaver.loss import Loss
from weaver.registry import Registry
from weaver.service.futures import FutureTable

CUSTOM = "custom"
MAXIMUM_LOSSES = 1000
"""Of one session."""
ENDED_SECONDS = 3600.0
"""How long the losses of an ended session stay: what it has asked for still happens."""


class Losses:
    """Looks a loss up by the name that passes have below the door. Every method may be called from any thread."""

    def __init__(self, registry: Registry, futures: FutureTable, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._futures, self._clock = registry, futures, clock
        self._lock = threading.Lock()
        self._made: dict[str, Loss] = {}
        self._sessions: dict[str, dict[int, tuple[Fingerprint, str, str]]] = {}
        self._ended: dict[str, float] = {}

    def create(self, session_id: str, seq_id: int, graph: LossGraph) -> str:
        """The request id of a new loss's future, or of the first one's for a repeat of (session_id, seq_id)."""
        make = self._registry.loss(CUSTOM).from_graph
        assert make is not None
        asked = fingerprint(name=graph.name, inputs=graph.inputs, graph=graph.nodes)
        loss = make(graph)
        with self._lock:
            self._drop_ended()
            mine = self._sessions.setdefault(session_id, {})
            if seq_id not in mine:
                mine[seq_id] = (asked, *self._add(session_id, loss, len(mine)))
            first, request_id, _ = mine[seq_id]
        if first != asked:
            raise SequenceRefused(
                f"custom_loss_seq_id {seq_id} was used with another {differences(first, asked)}; use a new number"
            )
        return request_id

    def resolved(self, operation: ForwardBackward, session_id: str) -> ForwardBackward:
        """The operation with the name that `loss` finds: for a custom loss that of its graph.

        Raises InvalidInput naming a loss that is not there.
        """
        try:
            family = self._registry.loss(operation.loss)
        except UnknownName as error:
            raise InvalidInput(f"loss_fn: {error}") from error
        if family.from_graph is None:
            return operation
        config = dict(operation.config)
        loss_id = config.pop("loss_id", None)
        with self._lock:
            known = {made for _, _, made in self._sessions.get(session_id, {}).values()}
        if loss_id not in known:
            raise InvalidInput(
                f"loss_fn_config['loss_id'] is {loss_id!r}; the loss {operation.loss!r} needs the id of one that "
                "create_custom_loss made in the same session"
            )
        return replace(operation, loss=str(loss_id), config=config)

    def loss(self, name: str) -> Loss:
        """The loss of a resolved operation. Raises UnknownName."""
        with self._lock:
            made = self._made.get(name)
        return self._registry.loss(name) if made is None else made

    def end_session(self, session_id: str) -> None:
        with self._lock:
            if session_id in self._sessions:
                self._ended[session_id] = self._clock()

    def _add(self, session_id: str, loss: Loss, number: int) -> tuple[str, str]:
        """The request id and the loss id of a new loss."""
        if number >= MAXIMUM_LOSSES:
            raise InvalidInput(f"this session has made {number} custom losses; use those it has")
        loss_id, request_id = f"{session_id}:loss:{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
        self._made[loss_id] = loss
        future: Future[CustomLossCreated] = Future()
        future.set_result(CustomLossCreated(loss_id))
        self._futures.add(request_id, future)
        return request_id, loss_id

    def _drop_ended(self) -> None:
        for session_id in [one for one, since in self._ended.items() if self._clock() - since > ENDED_SECONDS]:
            del self._ended[session_id]
            for _, _, loss_id in self._sessions.pop(session_id).values():
                del self._made[loss_id]
