"""The future of a client, which for a while is the client too: code from before 0.38 got the client itself."""

import inspect
import warnings
from collections.abc import Callable
from concurrent.futures import Future as ConcurrentFuture
from typing import Any, TypeVar

from weaver.compat.tinker.lib.public_interfaces.api_future import (
    APIFuture,
    AwaitableConcurrentFuture,
    tell_of_blocking,
)

C = TypeVar("C")
FutureClass = TypeVar("FutureClass", bound=type)

_ADVICE = "wait for the client first: call result() on what created it, or await it"


class BackcompatClientFuture(APIFuture[C]):
    """Wait for it to get the client. What is asked of it directly waits first, and warns."""

    def __init__(self, future: AwaitableConcurrentFuture[C]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> C:
        tell_of_blocking(self._future, f"{type(self).__name__}.result")
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> C:
        return await self._future.result_async(timeout)

    def future(self) -> ConcurrentFuture[C]:
        return self._future.future()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {_state(self.future())}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        warnings.warn(
            f"reading .{name} of a future of a client will stop working: {_ADVICE}", FutureWarning, stacklevel=2
        )
        return getattr(self.result(), name)


def _state(future: ConcurrentFuture[Any]) -> str:
    if not future.done():
        return "pending"
    if future.cancelled():
        return "cancelled"
    error = future.exception()
    return repr(future.result()) if error is None else f"failed: {error!r}"


def forwards_to(client: type) -> Callable[[FutureClass], FutureClass]:
    """Make every public method of `client` one of the future's: it waits for the client, warns, and calls it there."""

    def add(future_class: FutureClass) -> FutureClass:
        for name, member in vars(client).items():
            if not name.startswith("_") and inspect.isfunction(member) and name not in vars(APIFuture):
                make = _forwarding_async if inspect.iscoroutinefunction(member) else _forwarding
                setattr(future_class, name, make(client.__name__, name))
        return future_class

    return add


def _warn(client: str) -> None:
    warnings.warn(f"using the future as the {client} will stop working: {_ADVICE}", FutureWarning, stacklevel=3)


def _forwarding(client: str, name: str) -> Callable[..., Any]:
    def forward(self: BackcompatClientFuture[Any], *args: Any, **kwargs: Any) -> Any:
        _warn(client)
        return getattr(self.result(), name)(*args, **kwargs)

    return _named(forward, name)


def _forwarding_async(client: str, name: str) -> Callable[..., Any]:
    async def forward(self: BackcompatClientFuture[Any], *args: Any, **kwargs: Any) -> Any:
        _warn(client)
        return await getattr(await self, name)(*args, **kwargs)

    return _named(forward, name)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    return function
