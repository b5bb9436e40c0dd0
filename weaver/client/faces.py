"""The two faces of every client: methods that block, and methods to await. What they do is written once.

A method makes a coroutine for the background loop and returns `self._answer(...)` of it: its result, or a coroutine for
the caller's loop that ends with it. That is why these methods say that they return Any.
"""

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from weaver.client.connection import Connection
from weaver.client.operations import AsyncOperationHandle, Operation, OperationHandle
from weaver.client.requests import AsyncRequests, Requests

Work = Coroutine[Any, Any, Any]
Read = Callable[[Any], Any]


def _as_it_is(response: Any) -> Any:
    return response


class Face:
    """`_http` makes requests of the user's own, and belongs to the handles."""

    _connection: Connection
    _http: Any
    _handles: ClassVar[type[OperationHandle] | type[AsyncOperationHandle]]

    def _answer(self, work: Work, *, is_sample: bool = False) -> Any:
        raise NotImplementedError

    def _operation(self, work: Work, wait: bool, read: Read = _as_it_is, *, is_sample: bool = False) -> Any:
        """What an operation gave, as `read` has it; without `wait`, a handle as soon as it is accepted."""

        async def ended() -> Any:
            operation: Operation = await work
            return read(await operation.result())

        async def accepted() -> Any:
            return self._handles._of(self._http, await work)

        return self._answer(ended() if wait else accepted(), is_sample=is_sample)


class Blocking(Face):
    """Methods return when they are done."""

    _handles = OperationHandle

    def _answer(self, work: Work, *, is_sample: bool = False) -> Any:
        return self._connection.wait(work, is_sample=is_sample)


class Awaited(Face):
    """Methods return coroutines."""

    _handles = AsyncOperationHandle

    def _answer(self, work: Work, *, is_sample: bool = False) -> Any:
        return self._connection.awaited(work, is_sample=is_sample)


def requests_of(face: type[Face], connection: Connection) -> Any:
    """In the same manner."""
    return Requests(connection) if issubclass(face, Blocking) else AsyncRequests(connection)
