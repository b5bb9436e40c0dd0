"""A sampler that is opened on first use, on a thread of its own: asking it never blocks."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from weaver.errors import Stopped
from weaver.sampler import Sampler
from weaver.types import SampleRequest, SampleResult


class LazySampler:
    """Keeps requests that come while the sampler opens. An opening that failed fails them, and is tried again."""

    def __init__(self, open_sampler: Callable[[], Sampler]) -> None:
        self._open_sampler = open_sampler
        self._lock = threading.Lock()
        self._opening: Future[Sampler] | None = None
        self._closed = False

    def sample(self, request: SampleRequest) -> "Future[SampleResult]":
        opening = self._opened()
        if opening.done() and opening.exception() is None:
            return opening.result().sample(request)
        outer: Future[SampleResult] = Future()
        opening.add_done_callback(lambda done: _pass_on(done, request, outer))
        return outer

    def forget(self, adapter_id: str) -> None:
        with self._lock:
            opening = self._opening
        if opening is not None and opening.done() and opening.exception() is None:
            opening.result().forget(adapter_id)

    def close(self) -> None:
        with self._lock:
            self._closed, opening = True, self._opening
        if opening is not None and opening.exception() is None:
            opening.result().close()

    def _opened(self) -> "Future[Sampler]":
        with self._lock:
            if self._closed:
                raise Stopped("the server is shutting down")
            if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
                self._opening = Future()
                threading.Thread(target=self._open, args=(self._opening,), name="weaver-open-sampler").start()
            return self._opening

    def _open(self, opening: "Future[Sampler]") -> None:
        try:
            opening.set_result(self._open_sampler())
        except Exception as error:  # noqa: BLE001 -- whatever opening raises is what the waiting requests fail with
            opening.set_exception(error)


def _pass_on(opening: "Future[Sampler]", request: SampleRequest, outer: "Future[SampleResult]") -> None:
    if outer.cancelled():
        return
    if error := opening.exception():
        outer.set_exception(error)
        return
    inner = opening.result().sample(request)
    outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
    inner.add_done_callback(lambda done: _copy(done, outer))


def _copy(inner: "Future[SampleResult]", outer: "Future[SampleResult]") -> None:
    if inner.cancelled() or outer.cancelled():
        outer.cancel()
    elif error := inner.exception():
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())
