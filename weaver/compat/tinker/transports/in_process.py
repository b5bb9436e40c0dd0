"""The one service of this process, and its end.

It is made when a client first needs it. When the interpreter ends, what was asked for still happens, for EXIT_SECONDS
at most, and sessions are finished; after an error nothing is waited for but the step at hand.
"""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Final

from weaver.compat.tinker.lib import background
from weaver.config import Config, in_process_config, prepare_threads
from weaver.errors import WeaverError
from weaver.service import Service

logger = logging.getLogger(__name__)

EXIT_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 20.0


class Calls:
    """What clients of this process have asked for and not got yet."""

    def __init__(self) -> None:
        self._operations: set[Future[Any]] = set()
        self._samples: set[Future[Any]] = set()

    def watch(self, future: "Future[Any]", *, is_sample: bool) -> None:
        """Keep track of it until it settles."""
        under_way = self._samples if is_sample else self._operations
        under_way.add(future)
        future.add_done_callback(under_way.discard)

    def finish(self, seconds: float) -> None:
        """Wait for operations; samples change nothing, so nobody misses them."""
        for sample in tuple(self._samples):
            sample.cancel()
        left = wait(tuple(self._operations), seconds).not_done
        if left and seconds:
            logger.warning("%s operations were asked for and not done when the process ended", len(left))


class InProcess:
    """A service, and the sessions that this process has made."""

    def __init__(self, config: Config) -> None:
        self.data_dir = config.data_dir
        self.process = os.getpid()
        self.service = Service(config)
        self.sessions: set[str] = set()

    def end(self, status: str) -> None:
        """Finish the sessions and stop."""
        for session_id in tuple(self.sessions):
            self._finish(session_id, status)
        closing = threading.Thread(target=self.service.close, name="weaver-closing", daemon=True)
        try:
            closing.start()
        except RuntimeError:  # from Python 3.12 on no thread starts once the interpreter ends
            self.service.close()
        else:
            closing.join(CLOSE_SECONDS)

    def _finish(self, session_id: str, status: str) -> None:
        try:
            self.service.finish_session(session_id, status)
        except (WeaverError, OSError) as error:
            logger.warning("session %s could not be finished: %s", session_id, error)


prepare_threads()  # where torch has not been imported yet

calls = Calls()
_lock = threading.Lock()
_running: dict[Path, InProcess] = {}


def in_process(data_dir: Path | None = None) -> InProcess:
    """The service of this process on that data directory, or on the one that the environment says."""
    config = in_process_config(data_dir)
    with _lock:
        if config.data_dir not in _running:
            _running[config.data_dir] = InProcess(config)
        return _running[config.data_dir]


def end_all() -> None:
    """Leave nothing running. After this, new clients get a new service."""
    status, seconds = _how_it_ends(vars(sys))
    calls.finish(seconds)
    with _lock:
        running = tuple(_running.values())
        _running.clear()
    for one in running:
        one.end(status)


def _how_it_ends(system: Mapping[str, Any]) -> tuple[str, float]:
    """What a session is finished as, and for how long operations are waited for."""
    error = system.get("last_type")  # set when the program ended with an exception
    if error is None:
        return "success", EXIT_SECONDS
    return ("errored" if issubclass(error, Exception) else "interrupted"), 0.0


def _begin_anew() -> None:
    """In a process that was forked: what its parent has runs in the parent."""
    global _lock, calls
    _lock, calls = threading.Lock(), Calls()
    _running.clear()


os.register_at_fork(after_in_child=_begin_anew)


@atexit.register
def _exit() -> None:
    try:
        end_all()
    except KeyboardInterrupt:
        logger.warning("left while operations were under way")
    background.stop(1.0)
