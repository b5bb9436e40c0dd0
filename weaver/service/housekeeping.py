"""What has to be done from time to time although nobody asks for it."""

import ctypes
import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Housekeeper:
    """A thread that calls `tidy` every `seconds` until it is closed."""

    def __init__(self, tidy: Callable[[], None], seconds: float) -> None:
        self._tidy, self._seconds = tidy, seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weaver-housekeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            try:
                self._tidy()
            except Exception:  # a full disk or a busy database now must not keep it from being done later
                log.exception("tidying up failed; it is tried again in %s seconds", self._seconds)


def give_back_memory() -> None:
    """What was freed goes back to the system. The C library keeps what lies between pieces that are in use: all that a
    pass has used, and more from time to time, for the next one leaves other holes. Where it has no such call, nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
