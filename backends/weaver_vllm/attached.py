"""The sampler `vllm` on servers that run already: `weaver serve --sampler vllm --vllm-url http://host:8000`.

The servers are vLLM's own HTTP servers; weaver loads adapters into them and asks for samples. What cannot be drawn
exactly over HTTP is refused by name.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from threading import Lock, Thread
from typing import Any, Final

from weaver.domain import AdapterRef, ModelSource, SampleRequest, SampleResult
from weaver.errors import InvalidInput, ServerError, Stopped, WorkerLost
from weaver.sampler import SampleFuture
from weaver_vllm.attached_base import Base, base_of
from weaver_vllm.attached_calls import Lost, Unreached
from weaver_vllm.attached_engine import AttachedEngine
from weaver_vllm.attached_fleet import Fleet
from weaver_vllm.attached_refusals import refuse
from weaver_vllm.attached_server import check_urls

logger = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 300.0
"""How long a request waits for a server to be there."""
STRIKES: Final = 2
"""A request that ran when so many servers ended runs alone the next time."""
TRIES: Final = 8
"""Of one request, whatever the reason."""
END_SECONDS: Final = 15.0
"""How long servers may take to hear that nobody waits any more."""


class AttachedSampler:
    """A loop on a thread of its own owns the servers; every method just leaves something for it to do."""

    def __init__(
        self,
        urls: Sequence[str],
        base: Base,
        slots: int | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Returns when at least one server is attached to. Raises what is wrong with any that answers, or that none
        does."""
        self._urls, self._base, self._slots, self._patience = urls, base, slots, patience
        self._closing, self._closed = Lock(), False
        self._engines: list[AttachedEngine] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="weaver-vllm-attached", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def sample(self, request: SampleRequest) -> SampleFuture:
        future = SampleFuture(self._obstacle)
        with self._closing:
            if self._closed:
                future.set_exception(_stopped())
            else:
                self._loop.call_soon_threadsafe(self._begin, request, future)
        return future

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        """Nobody follows: requests that would are refused."""

    def forget(self, adapter_id: str) -> None:
        with self._closing:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._forget, adapter_id)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._came = asyncio.Event()
        self._engines = [AttachedEngine(url, self._base, self._slots) for url in self._urls]
        self._fleet = Fleet(self._engines)
        alike = None
        for engine in self._engines:
            try:
                await engine.attach(alike)
                alike = engine.facts
            except (Unreached, Lost) as error:
                engine.why = str(error)
                logger.warning("weaver goes on without a vLLM server for now: %s", error)
        if alike is None:
            raise ServerError(f"no vLLM server answers: {self._obstacle()}")
        for engine in self._engines:
            self._start(engine.keep(alike, lambda engine=engine: self._is_back(engine)))  # type: ignore[misc]

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_SECONDS)
        for engine in self._engines:
            await engine.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _begin(self, request: SampleRequest, future: SampleFuture) -> None:
        if self._closed:
            future.set_exception(_stopped())
            return
        task = self._start(self._settle(request, future))
        future.add_done_callback(lambda done: self._cancel(task) if done.cancelled() else None)

    def _cancel(self, task: "asyncio.Task[None]") -> None:
        with self._closing:
            if not self._closed:
                self._loop.call_soon_threadsafe(task.cancel)

    def _forget(self, adapter_id: str) -> None:
        for engine in self._engines:
            self._start(engine.forget(adapter_id))

    async def _settle(self, request: SampleRequest, future: SampleFuture) -> None:
        try:
            result = await self._draw(request, future)
        except asyncio.CancelledError:
            _fail(future, _stopped())  # unless it was the client who cancelled it
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, who waits must hear of it
            _fail(future, error)
            return
        if not future.done() and future.set_running_or_notify_cancel():
            future.set_result(result)

    async def _draw(self, request: SampleRequest, future: SampleFuture) -> SampleResult:
        """Nobody has seen a token of a request before it is done: what was cut short is drawn anew, with a seed the
        same tokens."""
        refuse(request)
        strikes, why = 0, ""

        def begun() -> None:
            future.begun = True

        for _ in range(TRIES):
            engine = self._fleet.choose(request, await self._up())
            try:
                return await engine.draw(request, strikes >= STRIKES, begun)
            except Unreached as error:
                why = str(error)
            except Lost as error:
                strikes, why = strikes + 1, str(error)
                if strikes > STRIKES:
                    break
            future.begun = False
        raise WorkerLost(f"vLLM servers ended while they had this request, the last time alone: {why}")

    async def _up(self) -> list[AttachedEngine]:
        try:
            async with asyncio.timeout(self._patience):
                while not (up := [engine for engine in self._engines if engine.is_up]):
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise WorkerLost(f"no vLLM server came back in {self._patience:.0f} seconds: {self._obstacle()}") from None
        return up

    def _is_back(self, engine: AttachedEngine) -> None:
        self._fleet.forget(engine)
        self._came.set()

    def _obstacle(self) -> str | None:
        reasons = [engine.why for engine in self._engines if not engine.is_up]
        return "; ".join(reasons) if len(reasons) == len(self._engines) else None


def open_sampler(source: ModelSource) -> AttachedSampler:
    """As the operator's options say."""
    for name in ("vllm_python", "vllm_arg"):
        if source.options[name]:
            flag = name.replace("_", "-")
            raise InvalidInput(
                f"--{flag} is about an engine of weaver's own, and --vllm-url names servers: leave one out"
            )
    urls = [url.strip() for url in str(source.options["vllm_url"]).split(",")]
    return open_attached(source, urls, int(str(source.options["vllm_lora_slots"])) or None)


def open_attached(source: ModelSource, urls: Sequence[str], slots: int | None = None) -> AttachedSampler:
    """A sampler on the servers at `urls`, which must all serve the base model of `source`. `slots`: how many adapters
    each may hold at a time; None for all that it was started for."""
    return AttachedSampler(check_urls(urls), base_of(source), slots)


def _fail(future: SampleFuture, error: Exception) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)


def _stopped() -> Stopped:
    return Stopped("the sampler is shutting down")
