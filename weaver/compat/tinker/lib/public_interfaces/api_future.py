"""Results that are still to come. Each can be waited for by threads (`result`) and by coroutines (`await`)."""

import asyncio
import builtins
import logging
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from concurrent.futures import Future as ConcurrentFuture
from typing import Any, Generic, TypeVar

from weaver.compat.tinker.lib import background

logger = logging.getLogger(__name__)

T = TypeVar("T")


class APIFuture(ABC, Generic[T]):
    """An operation's result. It happens whether or not anybody waits."""

    @abstractmethod
    async def result_async(self, timeout: float | None = None) -> T:
        """Wait for the result. After `timeout` seconds TimeoutError is raised and the waiting is given up for good."""
        raise NotImplementedError

    @abstractmethod
    def result(self, timeout: float | None = None) -> T:
        """Block until the result is there. TimeoutError after `timeout` seconds; one may ask again."""
        raise NotImplementedError

    @abstractmethod
    def future(self) -> ConcurrentFuture[T]:
        """The same result as a `concurrent.futures.Future`."""
        raise NotImplementedError

    async def coroutine(self) -> T:
        """The same result as a coroutine, which `asyncio.create_task` and the like ask for."""
        return await self

    def __await__(self) -> Generator[Any, None, T]:
        return self.result_async().__await__()


class AwaitableConcurrentFuture(APIFuture[T]):
    """Waits for a future of the background loop."""

    def __init__(self, future: ConcurrentFuture[T]) -> None:
        self._future: ConcurrentFuture[T] = future

    def result(self, timeout: float | None = None) -> T:
        refuse_waiting_for_oneself(self)
        return self._future.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self._future)

    def future(self) -> ConcurrentFuture[T]:
        return self._future


class SampleFuture(ConcurrentFuture[T], APIFuture[T]):
    """What `sample` returns is both kinds of future: code written for either goes on working."""

    def __init__(self, future: ConcurrentFuture[T]) -> None:
        super().__init__()
        self._inner = future
        self._warned = False
        future.add_done_callback(self._settle)

    def _settle(self, future: ConcurrentFuture[T]) -> None:
        if future.cancelled():
            ConcurrentFuture.cancel(self)
            self.set_running_or_notify_cancel()
        elif error := future.exception():
            self.set_exception(error)
        else:
            self.set_result(future.result())

    def result(self, timeout: float | None = None) -> T:
        refuse_waiting_for_oneself(self)
        return self._inner.result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self._inner)

    def future(self) -> ConcurrentFuture[T]:
        return self._inner

    def __await__(self) -> Generator[Any, None, T]:
        return APIFuture.__await__(self)

    def cancel(self) -> bool:
        self._warn("cancel")
        return self._inner.cancel()

    def cancelled(self) -> bool:
        self._warn("cancelled")
        return self._inner.cancelled()

    def running(self) -> bool:
        self._warn("running")
        return self._inner.running()

    def done(self) -> bool:
        self._warn("done")
        return self._inner.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._warn("exception")
        return self._inner.exception(timeout)

    def add_done_callback(self, fn: Callable[[ConcurrentFuture[T]], object]) -> None:
        self._warn("add_done_callback")
        super().add_done_callback(fn)

    def _warn(self, method: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{method}() of what sample() returns will go: await it, call result(), or take future() from it",
                FutureWarning,
                stacklevel=3,
            )


def refuse_waiting_for_oneself(future: APIFuture[Any]) -> None:
    """Raise RuntimeError for a blocking wait on the one thread that could bring the result."""
    if background.is_here() and not future.future().done():
        raise RuntimeError(
            "result() was called on the clients' own event loop, where it would wait for itself: await it"
        )


def tell_of_blocking(future: APIFuture[Any], method: str) -> None:
    """Log a warning when a blocking method is called inside a running event loop. Notebooks run inside one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    refuse_waiting_for_oneself(future)
    if not future.future().done() and not _in_notebook():
        stack = "".join(traceback.format_stack()[:-1])
        logger.warning("%s() blocks the event loop it is called in; await the future instead.\n%s", method, stack)


def _in_notebook() -> bool:
    shell = getattr(builtins, "get_ipython", None)
    return shell is not None and type(shell()).__name__ in ("ZMQInteractiveShell", "Shell")
