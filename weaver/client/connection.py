"""A session with a service: what all clients of it have in common. Coroutines belong to the background loop."""

import asyncio
import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from weaver import __version__
from weaver.client.errors import WeaverAPIError
from weaver.client.transports.contract import ATTEMPTS, Json, Transport
from weaver.compat.tinker.lib import background

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEAVING_SECONDS: Final = 60.0
"""How long `close` waits for operations that nobody has waited for."""
_OVER: Final = 410


class Waiting(Protocol):
    """An operation."""

    async def settled(self) -> Json: ...


@dataclass
class SessionDetails:
    """What a session is created with. Names of an organization and a project stand for their ids."""

    tags: list[str]
    user_metadata: dict[str, Any]
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    organization_id: str | None = None
    project_id: str | None = None
    organization: str | None = None
    project: str | None = None
    scheduling_policy: dict[str, Any] | None = None


class Connection:
    """Made without asking anybody. With `connects` the first request connects; else it raises RuntimeError.

    `opened` is called when there is something to close.
    """

    def __init__(
        self,
        transport: Transport,
        details: SessionDetails,
        session_id: str | None,
        heartbeat_interval: float,
        *,
        connects: bool,
        opened: Callable[[], object],
    ) -> None:
        self.transport = transport
        self.details = details
        self.session_id = session_id
        self.session: Json | None = None
        self.is_open = False
        self.closed = False
        self.created_models: list[str] = []
        self._interval, self._connects, self._opened = heartbeat_interval, connects, opened
        self._lock = threading.Lock()
        self._opening: asyncio.Lock | None = None
        self._heart: asyncio.Task[None] | None = None
        self._numbers: dict[str, itertools.count[int]] = defaultdict(lambda: itertools.count(1))
        self._orders: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._pending: set[Waiting] = set()

    def wait(self, work: Coroutine[Any, Any, T], *, is_sample: bool = False) -> T:
        """Do it on the background loop, and block until it is done."""
        if background.is_here():
            work.close()
            raise RuntimeError("a blocking client was called on its own loop; use AsyncServiceClient there")
        future = background.run(work)
        self.transport.began(future, is_sample=is_sample)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def awaited(self, work: Coroutine[Any, Any, T], *, is_sample: bool = False) -> T:
        """Do it on the background loop, while the caller's loop goes on."""
        future = background.run(work)
        self.transport.began(future, is_sample=is_sample)
        return await asyncio.wrap_future(future)

    def next_number(self, of: str) -> int:
        """From 1 on, for a model's operations, for models and for sampling sessions."""
        with self._lock:
            return next(self._numbers[of])

    def order(self, model_id: str) -> asyncio.Lock:
        """Requests of one model leave in the order in which they came."""
        return self._orders[model_id]

    def under_way(self, operation: Waiting) -> None:
        """It was accepted, and `close` shall not cut it short."""
        self._pending.add(operation)

    def ended(self, operation: Waiting) -> None:
        """Its end is known."""
        self._pending.discard(operation)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
        *,
        attempts: int = ATTEMPTS,
        hold: bool = False,
    ) -> Any:
        """See `Transport.request`. Raises RuntimeError where this is not connected."""
        if not self.is_open:
            if self.closed or not self._connects:
                raise RuntimeError("ServiceClient is not connected")
            await self.connect()
        return await self.transport.request(method, path, query, body, attempts=attempts, hold=hold)

    async def connect(self, *, with_session: bool = True) -> None:
        """Open the transport, and create the session or join the one that was named. Once is enough."""
        if self.closed:
            raise RuntimeError("ServiceClient is closed")
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if not self.is_open:
                await self.transport.open()
                self.is_open = True
                self._opened()
            if with_session and self.session is None:
                await self._join()

    async def _join(self) -> None:
        if self.session_id is None:
            await self.create_session(self.details)
        else:
            self.session = await self.transport.request("GET", f"/sessions/{self.session_id}")
        if self._heart is None:
            self._heart = background.task(self._beat())

    async def create_session(self, details: SessionDetails) -> Json:
        """A session of these details, unless there is one."""
        if self.session is not None:
            return self.session
        organization_id, project_id = await self._scope(details)
        optional = {
            "name": details.name,
            "labels": details.labels or None,
            "organization_id": organization_id,
            "project_id": project_id,
            "scheduling_policy": details.scheduling_policy,
        }
        body = {"tags": details.tags, "user_metadata": details.user_metadata, "sdk_version": __version__}
        given = {name: value for name, value in optional.items() if value is not None}
        session: Json = await self.transport.request("POST", "/sessions", body={**body, **given})
        if details.scheduling_policy is not None and session.get("scheduling_policy") != details.scheduling_policy:
            raise ValueError("Server did not accept the requested scheduling policy")
        self.session, self.session_id = session, str(session["id"])
        return session

    async def _scope(self, details: SessionDetails) -> tuple[str | None, str | None]:
        """The ids of the organization and the project, asked for where they are named otherwise."""
        organization, project = details.organization_id, details.project_id
        if (organization is None and details.organization) or (project is None and details.project):
            asked = {"organization": organization or details.organization, "project": project or details.project}
            found = await self.transport.request("GET", "/scope/resolve", asked)
            organization = organization or found["organization"]["id"]
            project = project or found["project"]["id"]
        return organization, project

    async def the_session(self, *, begins: bool = False) -> str:
        """The session's id; `begins` one where there is none. Raises RuntimeError where this is not connected."""
        if self.closed or not (self.is_open or self._connects):
            raise RuntimeError("ServiceClient is not connected")
        if self.session is None and (begins or self._connects):
            await self.connect()
        if self.session_id is None:
            raise RuntimeError("Session not initialized yet")
        return self.session_id

    async def _beat(self) -> None:
        """At once, and then in every interval, until the session is over."""
        while not self.closed:
            try:
                await self.transport.request("POST", f"/sessions/{self.session_id}/heartbeat", attempts=1)
            except WeaverAPIError as error:
                if error.status_code == _OVER:
                    logger.warning("session %s has ended: %s", self.session_id, error)
                    return
                logger.debug("a heartbeat was refused: %s", error)
            await asyncio.sleep(self._interval)

    async def close(self, *, waits: bool = True) -> None:
        """See to what was accepted if it `waits`, end this session's models, and let nothing more through."""
        if self.closed:
            return
        self.closed = True
        if self.is_open:
            if waits and self._pending:
                await self._see_through()
            for model_id in self.created_models:
                try:
                    await self.transport.request("POST", f"/models/{model_id}/terminate", attempts=1)
                except Exception as error:  # noqa: BLE001 -- whatever it is, the others are to be ended too
                    logger.debug("model %s could not be ended: %s", model_id, error)
        if self._heart is not None:
            self._heart.cancel()
        self.is_open = False
        await self.transport.close()

    async def _see_through(self) -> None:
        tasks = [background.task(operation.settled()) for operation in self._pending]
        left = (await asyncio.wait(tasks, timeout=LEAVING_SECONDS))[1]
        if left:
            logger.warning("%s operations were accepted and not done when their client was closed", len(left))
