"""A sampler that is opened on first use, on a thread of its own: asking it never blocks."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from weaver.checkpoints import check_checkpoint
from weaver.domain import AdapterRef, SampleRequest, SampleResult
from weaver.errors import Stopped
from weaver.kept import KeptFolders
from weaver.sampler import SampleFuture, Sampler


class LazySampler:
    """Keeps requests that come while the sampler opens, or while an adapter's files are compared with their manifest
    before its first use, and no longer. What failed fails them, and is tried again with the next."""

    def __init__(self, open_sampler: Callable[[], Sampler], folders: KeptFolders) -> None:
        self._open_sampler, self._folders = open_sampler, folders
        self._lock = threading.Lock()
        self._opening: Future[Sampler] | None = None
        self._adapters: dict[str, Future[Sampler]] = {}
        self._closed = False

    def sample(self, request: SampleRequest) -> SampleFuture:
        ready = self._opened() if request.adapter is None else self._checked(request.adapter)
        if ready.done() and ready.exception() is None:
            return ready.result().sample(request)
        outer = SampleFuture(self._waits_for)
        ready.add_done_callback(lambda done: _pass_on(done, request, outer))
        return outer

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        """Pass newer weights on, once they are known to be what was written. Where nothing was sampled yet there is
        nobody to tell: later requests come with these weights or newer ones."""
        with self._lock:
            if self._closed or self._opening is None:
                return
        self._checked(adapter).add_done_callback(
            lambda ready: None if ready.exception() else ready.result().publish(model_id, version, adapter)
        )

    def forget(self, adapter_id: str) -> None:
        with self._lock:
            opening = self._opening
            self._adapters.pop(adapter_id, None)
        if opening is not None and opening.done() and opening.exception() is None:
            opening.result().forget(adapter_id)

    def close(self) -> None:
        with self._lock:
            self._closed, opening = True, self._opening
        if opening is not None and opening.exception() is None:
            opening.result().close()

    def _waits_for(self) -> str:
        opening = self._opening
        ready = opening is not None and opening.done()
        return "the adapter is being read" if ready else "the base model is being loaded for sampling"

    def _opened(self) -> "Future[Sampler]":
        with self._lock:
            if self._closed:
                raise Stopped("the server is shutting down")
            if self._opening is None or _failed(self._opening):
                self._opening = Future()
                threading.Thread(target=self._open, args=(self._opening,), name="weaver-open-sampler").start()
            return self._opening

    def _checked(self, adapter: AdapterRef) -> "Future[Sampler]":
        """The sampler, once the adapter is known to be what was written."""
        opening = self._opened()
        with self._lock:
            known = self._adapters.get(adapter.adapter_id)
            if known is None or _failed(known):
                known = self._adapters[adapter.adapter_id] = Future()
                threading.Thread(
                    target=self._check, args=(adapter, opening, known), name="weaver-check-adapter"
                ).start()
            return known

    def _open(self, opening: "Future[Sampler]") -> None:
        try:
            opening.set_result(self._open_sampler())
        except Exception as error:  # noqa: BLE001 -- whatever opening raises is what the waiting requests fail with
            opening.set_exception(error)
            return
        with self._lock:
            if self._opening is opening:
                self._opening = _settled(opening.result())

    def _check(self, adapter: AdapterRef, opening: "Future[Sampler]", checked: "Future[Sampler]") -> None:
        try:
            check_checkpoint(self._folders.local(adapter.folder))
            checked.set_result(opening.result())
        except Exception as error:  # noqa: BLE001 -- whatever it is, the waiting requests fail with it
            checked.set_exception(error)
            return
        with self._lock:
            if self._adapters.get(adapter.adapter_id) is checked:
                self._adapters[adapter.adapter_id] = _settled(checked.result())


def _settled(sampler: Sampler) -> "Future[Sampler]":
    """A future of its own: the one that requests have waited for holds them, and their results, as long as it lives."""
    future: Future[Sampler] = Future()
    future.set_result(sampler)
    return future


def _failed(future: "Future[Sampler]") -> bool:
    return future.done() and future.exception() is not None


def _pass_on(opening: "Future[Sampler]", request: SampleRequest, outer: SampleFuture) -> None:
    if outer.cancelled():
        return
    if error := opening.exception():
        if outer.set_running_or_notify_cancel():
            outer.set_exception(error)
        return
    try:
        inner = opening.result().sample(request)
        outer.follow(inner)
    except Exception as error:  # noqa: BLE001 -- in a callback nobody would hear of it
        if outer.set_running_or_notify_cancel():
            outer.set_exception(error)
        return
    outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
    inner.add_done_callback(lambda done: _copy(done, outer))


def _copy(inner: "Future[SampleResult]", outer: "Future[SampleResult]") -> None:
    if inner.cancelled():
        outer.cancel()
    elif not outer.set_running_or_notify_cancel():
        return
    elif error := inner.exception():
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())
