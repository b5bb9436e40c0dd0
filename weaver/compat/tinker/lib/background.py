"""The one thread on which every client of this process talks to its service: a private event loop.

It is a daemon thread, and it never computes: what may take long goes to a daemon thread of its own.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_tasks: set["asyncio.Task[Any]"] = set()


class _Background:
    """A running loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="weaver-client", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


_background: _Background | None = None


def loop() -> asyncio.AbstractEventLoop:
    """The loop, started when it is first needed."""
    global _background
    with _lock:
        if _background is None:
            _background = _Background()
        return _background.loop


def is_here() -> bool:
    """Whether the caller runs on the loop, where waiting for a result would be waiting for itself."""
    return _background is not None and threading.current_thread() is _background.thread


def run(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """Start it on the loop; those that one thread starts begin in that order."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop())


def task(coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """For callers on the loop: a task that is kept until it is done, whoever stops waiting for it."""
    made = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(made)
    made.add_done_callback(_forget)
    return made


def _forget(done: "asyncio.Task[Any]") -> None:
    _tasks.discard(done)
    if not done.cancelled():
        done.exception()  # seen: asyncio does not complain of what nobody waits for any more


async def in_thread(work: Callable[[], T]) -> T:
    """Do what may take long on a daemon thread: importing torch, reading a model's configuration, copying files."""
    future: Future[T] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 -- whatever it is, whoever waits gets it
            future.set_exception(error)

    threading.Thread(target=do, name="weaver-client-work", daemon=True).start()
    return await asyncio.wrap_future(future)


def stop(seconds: float) -> None:
    """Before the interpreter ends: nothing runs on the loop any more."""
    running = _background
    if running is None:
        return

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for pending in others:
            pending.cancel()
        if others:
            await asyncio.wait(others, timeout=seconds)
        running.loop.call_soon(running.loop.stop)

    asyncio.run_coroutine_threadsafe(end(), running.loop)
    running.thread.join(2 * seconds)


def _begin_anew() -> None:
    """In a process that was forked the thread is gone, and whoever held the lock."""
    global _background, _lock
    _background, _lock = None, threading.Lock()
    _tasks.clear()


os.register_at_fork(after_in_child=_begin_anew)
