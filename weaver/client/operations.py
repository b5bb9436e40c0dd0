"""Long work: accepted at once, done later. Handles are how users wait for it."""

import asyncio
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

from weaver.client.connection import Connection
from weaver.client.errors import WeaverAPIError, WeaverOperationError
from weaver.client.requests import AsyncRequests, Requests
from weaver.client.settings import poll_failures, poll_interval
from weaver.client.transports.contract import Json
from weaver.client.transports.packs import unpacked

logger = logging.getLogger(__name__)

_ENDS: Final = ("done", "error")
_DELAYS: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
_HELD_BACK: Final = 0.5
"""A server that answers sooner, and that it is not done, does not hold its answers back."""
_QUIET_SECONDS: Final = 30.0
_SCHEDULING: Final = ("waiting_for_scheduling", "waiting_for_resources")
_LOST_READS: Final = ("unexpected eof", "connection reset", "broken pipe", "bad connection", "closed the connection")


class Operation:
    """What a service was asked to do, and its last known state."""

    def __init__(self, connection: Connection, payload: Json) -> None:
        self._connection = connection
        self.operation_id = str(payload["id"])
        self.payload = payload
        self._told = 0.0

    @property
    def status(self) -> str | None:
        status = self.payload.get("status")
        return None if status is None else str(status).lower()

    @property
    def is_done(self) -> bool:
        return self.status in _ENDS

    async def refresh(self, *, hold: bool = False) -> Json:
        """Ask for its state; with `hold`, until it has ended or the service answers anyway."""
        if not self.is_done or not hold:
            payload: Json = await self._connection.request("GET", f"/operations/{self.operation_id}", hold=hold)
            self.payload = await self._whole(payload)
        return self.payload

    async def _whole(self, payload: Json) -> Json:
        """With the tensors that travel apart."""
        response = payload.get("response")
        if not isinstance(response, dict) or not isinstance(response.get("tensor_pack"), dict):
            return payload
        pack = await self._connection.transport.pack(self.operation_id, response["tensor_pack"]["size_bytes"])
        return {**payload, "response": unpacked(response, pack)}

    async def settled(self) -> Json:
        """Its state once it has ended, however long that takes. Raises WeaverOperationError where it failed."""
        self.payload = await self._whole(self.payload)
        began, delays, failures = time.monotonic(), _delays(), poll_failures()
        while not self.is_done:
            asked = time.monotonic()
            try:
                await self.refresh(hold=True)
            except WeaverAPIError as error:
                failures -= 1
                if failures < 0 or not _may_pass(error):
                    raise
                logger.warning("operation %s is asked for again: %s", self.operation_id, error)
            if not self.is_done:
                self._tell_why(began)
                if time.monotonic() - asked < _HELD_BACK:
                    await asyncio.sleep(next(delays))
        self._connection.ended(self)
        if self.status == "error":
            raise WeaverOperationError(self.payload, operation_id=self.operation_id)
        return self.payload

    async def result(self) -> Any:
        return (await self.settled()).get("response")

    def _tell_why(self, began: float) -> None:
        """What keeps it waiting, once a minute: after a while, or at once where it waits for machines."""
        info, now = self.payload.get("pending_info") or {}, time.monotonic()
        is_late = now - began > _QUIET_SECONDS or info.get("code") in _SCHEDULING
        if self.status == "pending" and is_late and now - self._told > 2 * _QUIET_SECONDS:
            self._told = now
            logger.warning(
                "operation %s has been pending for %d s [%s]: %s",
                self.operation_id,
                max(now - began, info.get("wait_seconds") or 0),
                info.get("code") or "queued",
                info.get("message") or "it has not started",
            )


def _delays() -> Iterator[float]:
    fixed = poll_interval()
    yield from _DELAYS if fixed is None else ()
    while True:
        yield _DELAYS[-1] if fixed is None else fixed


def _may_pass(error: WeaverAPIError) -> bool:
    """Asking for a state changes nothing, so it is asked again unless the operation is not there."""
    lost = error.code == "not_found" and any(part in error.message.lower() for part in _LOST_READS)
    return error.retryable or error.status_code >= 500 or lost


class _Handle:
    """What can be told without asking."""

    def __init__(self, client: Any, operation_id: str, payload: Json) -> None:
        self.client = client
        self._operation = Operation(client.connection, {**payload, "id": operation_id})

    @classmethod
    def from_payload(cls, client: Any, payload: Json) -> Any:
        """Of a service's answer. Raises ValueError for one without an id."""
        if payload.get("id") is None:
            raise ValueError("Payload missing id field")
        return cls(client, str(payload["id"]), payload)

    @classmethod
    def _of(cls, client: Any, operation: Operation) -> Any:
        """Of one that this process has asked for."""
        made = cls.__new__(cls)
        made.client, made._operation = client, operation
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}(operation_id={self.operation_id!r}, status={self.status!r})"

    @property
    def operation_id(self) -> str:
        """The service's name for it."""
        return self._operation.operation_id

    @property
    def status(self) -> str | None:
        """As last heard: pending, running, done or error."""
        return self._operation.status

    @property
    def response(self) -> Any:
        """What it gave, if it is known to be done."""
        return self._operation.payload.get("response")

    @property
    def error(self) -> str | None:
        """The name of what went wrong, if it is known to have failed."""
        return str(self._operation.payload.get("error") or "") or None

    @property
    def pending_info(self) -> Json | None:
        """What it waits for, as last heard."""
        info = self._operation.payload.get("pending_info")
        return dict(info) if self.status == "pending" and isinstance(info, dict) else None

    def done(self) -> bool:
        """Whether it is known to have ended, well or not. Asks nobody."""
        return self._operation.is_done


class OperationHandle(_Handle):
    """Work that a service has accepted; methods block."""

    client: Requests

    def refresh(self) -> Json:
        """Ask for its state."""
        found: Json = self.client.connection.wait(self._operation.refresh())
        return found

    def wait(self) -> Json:
        """Its state once it has ended. Raises WeaverOperationError where it failed."""
        found: Json = self.client.connection.wait(self._operation.settled())
        return found

    def result(self) -> Any:
        """What it gave, once it is done. Raises WeaverOperationError where it failed."""
        self.wait()
        return self.response

    @classmethod
    def wait_all(cls, handles: "Sequence[OperationHandle]") -> list[Any]:
        """The results of all, in this order."""
        return [handle.result() for handle in handles]


class AsyncOperationHandle(_Handle):
    """Work that a service has accepted; `await` the handle, or its methods, for the result."""

    client: AsyncRequests

    async def refresh(self) -> Json:
        """Ask for its state."""
        found: Json = await self.client.connection.awaited(self._operation.refresh())
        return found

    async def wait(self) -> Json:
        """Its state once it has ended. Raises WeaverOperationError where it failed."""
        found: Json = await self.client.connection.awaited(self._operation.settled())
        return found

    async def result(self) -> Any:
        """What it gave, once it is done. Raises WeaverOperationError where it failed."""
        await self.wait()
        return self.response

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    @classmethod
    async def wait_all(cls, handles: "Sequence[AsyncOperationHandle]") -> list[Any]:
        """The results of all, in this order."""
        return [await handle.result() for handle in handles]


def build_operation_handle(client: Requests, payload: Json) -> OperationHandle:
    """Of a service's answer."""
    handle: OperationHandle = OperationHandle.from_payload(client, payload)
    return handle


def build_async_operation_handle(client: AsyncRequests, payload: Json) -> AsyncOperationHandle:
    """Of a service's answer."""
    handle: AsyncOperationHandle = AsyncOperationHandle.from_payload(client, payload)
    return handle
