"""Samples for clients without a session: whatever is sampled from gets one of its own when it is first asked for."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from weaver.compat.context import ServerContext
from weaver.compat.openai.models import Target
from weaver.domain import SampleResult
from weaver.errors import Forgotten, Stopped
from weaver.service import Service


class Disconnected(Exception):
    """The client is gone: nobody reads an answer."""


@dataclass(slots=True)
class _Source:
    """A sampling session and the numbers of its requests."""

    sampling_session_id: str
    numbers: Iterator[int] = field(default_factory=itertools.count)


class Samplers:
    """Sampling sessions by what they sample from. A session lives like any other, by being asked: the lease of one that
    nobody uses ends it, which lets go of a deleted snapshot's files; the next request makes a new one.

    Every method may be called from any thread.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._sources: dict[Target, _Source] = {}

    def sample(self, target: Target, **asked: Any) -> str:
        """The request id of a sample; `asked` as `Service.sample` has it."""
        source = self._source(target)
        try:
            return self._sample(source, asked)
        except Forgotten:  # the session has ended
            self._drop(target, source)
            return self._sample(self._source(target), asked)

    def _sample(self, source: _Source, asked: dict[str, Any]) -> str:
        return self._service.sample(source.sampling_session_id, next(source.numbers), **asked).request_id

    def _source(self, target: Target) -> _Source:
        with self._lock:
            if target not in self._sources:
                self._sources = {one: source for one, source in self._sources.items() if self._lives(source)}
                self._sources[target] = _Source(self._opened(target))
            return self._sources[target]

    def _lives(self, source: _Source) -> bool:
        try:
            self._service.sampler_info(source.sampling_session_id)
        except Forgotten:
            return False
        return True

    def _opened(self, target: Target) -> str:
        session_id = self._service.create_session(
            user_metadata={}, tags=["openai"], display_name=f"OpenAI endpoint: {target.weight_version}"
        )
        base_model = target.base_model if target.snapshot is None else None
        return self._service.create_sampling_session(session_id, 0, base_model=base_model, model_path=target.snapshot)

    def _drop(self, target: Target, source: _Source) -> None:
        with self._lock:
            if self._sources.get(target) is source:
                del self._sources[target]


class Running:
    """Samples on their way for one HTTP request. They are cancelled when the client leaves: nobody reads them."""

    def __init__(self, request: Request, context: ServerContext, request_ids: list[str]) -> None:
        self._service, self._request_ids = context.service, request_ids
        futures = [asyncio.wrap_future(context.service.future(one)) for one in request_ids]
        self._done = asyncio.gather(*futures)
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, whoever leaves first
        self._stopping = asyncio.create_task(context.stopping.wait())
        self._gone = asyncio.create_task(_disconnected(request))
        self._gone.add_done_callback(lambda _: self._cancel())

    async def result(self) -> list[SampleResult]:
        """Raises what a sample failed with, Disconnected when the client left, Stopped when the server does."""
        await self.either(self._done)
        return self._done.result()

    async def either(self, other: "asyncio.Future[Any]") -> None:
        """Wait until `other` or the samples are done, and they have not failed. Raises what `result` raises."""
        waited: set[asyncio.Future[Any]] = {other, self._done, self._gone, self._stopping}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._gone.done():
            raise Disconnected
        if self._done.done():
            self._done.result()
        elif self._stopping.done():
            raise Stopped("the server is shutting down")

    def leave(self) -> None:
        """The answer is sent, or there will be none."""
        self._stopping.cancel()
        self._gone.cancel()
        self._cancel()

    def _cancel(self) -> None:
        for request_id in self._request_ids:
            self._service.cancel(request_id)
        self._service.drop_samples(self._request_ids)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
