"""A client's session with its service: what its clients have in common."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from weaver.compat.tinker.exceptions import APIStatusError
from weaver.compat.tinker.lib import background
from weaver.compat.tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
from weaver.compat.tinker.transports.contract import Call, Json, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")

SESSION_OVER = 410


class Session:
    """Made without asking anybody; the session begins with the first call that needs one.

    `details` are what it is created with; with `session_id` it is there already, as for a client that was unpickled.
    """

    def __init__(
        self, transport: Transport, details: Mapping[str, Any] | None = None, session_id: str | None = None
    ) -> None:
        self.transport = transport
        self.closed = False
        self._details = dict(details or {})
        self._session_id = session_id
        self._is_guest = session_id is not None
        self._lock = threading.Lock()
        self._opening: asyncio.Task[str] | None = None
        self._heart: asyncio.Task[None] | None = None
        self._models, self._samplers, self._losses = itertools.count(), itertools.count(), itertools.count()

    def run(self, coroutine: Coroutine[Any, Any, T], *, is_sample: bool = False) -> AwaitableConcurrentFuture[T]:
        """Run it on the background loop, unless the session has been closed: then its future fails with RuntimeError.

        Coroutines that one thread starts begin in that order.
        """
        future = background.run(self._unless_closed(coroutine))
        self.transport.began(future, is_sample=is_sample)
        return AwaitableConcurrentFuture(future)

    async def _unless_closed(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self.closed:
            coroutine.close()
            raise RuntimeError("Internal client holder is closed: its ServiceClient was")
        return await coroutine

    def get_session_id(self) -> str:
        """Blocks while the session is being created."""
        if self._session_id is None:
            self.run(self.ready()).result()
        assert self._session_id is not None
        return self._session_id

    @property
    def known_session_id(self) -> str | None:
        """None before the session has been created."""
        return self._session_id

    async def ready(self) -> str:
        """The session's id. It is created when this is first awaited; a failure is tried again with the next call."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = background.task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> str:
        await self.transport.open()
        if self._session_id is None:
            answer = await self.transport.call(Call("POST", "/create_session", body=self._details))
            self._tell(answer)
            self._session_id = str(answer["session_id"])
        if not self._is_guest:
            self._heart = background.task(self._beat(self._session_id))
        return self._session_id

    def next_model(self) -> int:
        return next(self._models)

    def next_sampler(self) -> int:
        return next(self._samplers)

    def next_loss(self) -> int:
        return next(self._losses)

    async def call(self, call: Call) -> Json:
        """Ask what belongs to no session."""
        await self.transport.open()
        return await self.transport.call(call)

    def ask(self, call: Call, parse: Callable[[Json], T]) -> AwaitableConcurrentFuture[T]:
        """The parsed answer of a call that belongs to no session."""

        async def answered() -> T:
            return parse(await self.call(call))

        return self.run(answered())

    async def close(self, status: str, detail: str | None) -> None:
        """Finish the session, if there is one, and let nothing more through."""
        try:
            if self._session_id is not None and not self._is_guest:
                body = {"reason": {"type": status}, "detail": detail}
                path = {"session": self._session_id}
                await self.transport.call(Call("POST", "/sessions/{session}/finish", path, body=body))
        finally:
            self.closed = True
            if self._heart is not None:
                self._heart.cancel()
            await self.transport.close()

    async def _beat(self, session_id: str) -> None:
        while not self.closed:
            await asyncio.sleep(self.transport.heartbeat_seconds)
            try:
                await self.transport.call(Call("POST", "/session_heartbeat", body={"session_id": session_id}))
            except APIStatusError as error:
                if error.status_code == SESSION_OVER:
                    logger.warning("session %s has ended: %s", session_id, error)
                    return
                logger.debug("a heartbeat was refused: %s", error)
            except Exception as error:  # noqa: BLE001 -- the next one may get through
                logger.debug("a heartbeat failed: %s", error)

    def _tell(self, answer: Json) -> None:
        """What a server wants its users to read."""
        for level in ("info", "warning", "error"):
            if message := answer.get(f"{level}_message"):
                logger.log(logging.getLevelNamesMapping()[level.upper()], "%s", message)
