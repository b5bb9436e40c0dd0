"""Into the endpoints of the service in this process, which Tinker's clients have too: no encoding, no polls."""

import asyncio
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from weaver.client.errors import api_error
from weaver.client.transports.contract import ATTEMPTS, Json
from weaver.client.transports.packs import plain
from weaver.compat.tinker.lib import background
from weaver.compat.tinker.transports import in_process
from weaver.compat.tinker.transports.in_process import InProcess
from weaver.compat.weaver_wire.context import WireContext
from weaver.compat.weaver_wire.endpoints import dispatch
from weaver.compat.weaver_wire.errors import answer_error
from weaver.errors import WeaverError
from weaver.service import Service

SLOW: Final = ("/models", "/sampling-sessions")
"""What may load a model's configuration, which takes seconds: it gets a thread and a loop of its own."""

OPERATIONS: Final = "/operations/"

_contexts: "WeakKeyDictionary[Service, WireContext]" = WeakKeyDictionary()
"""One for each service of this process: what one client was promised, another may ask for."""


class Local:
    """See `contract.Transport`."""

    def __init__(self) -> None:
        self._opened: InProcess | None = None

    def began(self, future: "Future[Any]", *, is_sample: bool) -> None:
        in_process.calls.watch(future, is_sample=is_sample)

    async def open(self) -> None:
        """A process that was forked has its parent's objects, and none of its threads."""
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = await background.in_thread(in_process.in_process)

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
        await self.open()
        assert self._opened is not None
        context = context_of(self._opened.service)
        asked = replace(context, hold_seconds=None if hold else 0)
        if method == "GET" and path.startswith(OPERATIONS):
            status, answer = await _told(asked, path.removeprefix(OPERATIONS))
        elif method == "POST" and path.endswith(SLOW):
            work = lambda: asyncio.run(dispatch(asked, method, path, query, body))  # noqa: E731
            status, answer = await background.in_thread(work)
        else:
            status, answer = await dispatch(asked, method, path, query, body)
        if status >= 400:
            raise api_error(status, answer, {})
        if (method, path) == ("POST", "/sessions"):
            self._opened.sessions.add(answer["id"])  # finished when the process ends
        return plain(answer)

    async def pack(self, operation_id: str, size: int) -> bytes:
        raise NotImplementedError(f"results in process come whole: {operation_id}")

    async def close(self) -> None:
        """The service is the process's, and others may use it."""


def context_of(service: Service) -> WireContext:
    """The service's one."""
    return _contexts.setdefault(service, WireContext(service))


async def _told(context: WireContext, operation_id: str) -> tuple[int, Any]:
    """How an operation stands, when it has ended. A result is written down on another thread: it may want a tokenizer.

    No thread can be started once the main one is over; nobody reads the result then.
    """
    try:
        await context.operations.settled(operation_id, context.hold_seconds)
        if not threading.main_thread().is_alive():
            return 200, context.operations.told(operation_id)
        return 200, await background.in_thread(lambda: context.operations.told(operation_id))
    except WeaverError as error:
        return answer_error(error)
