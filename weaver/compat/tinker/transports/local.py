"""Straight to a service in this process: no encoding, no copies but those that keep a caller's arrays the caller's."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from weaver.compat.error_table import status_of
from weaver.compat.tinker import answers, types
from weaver.compat.tinker.exceptions import APIStatusError, RequestFailedError, RetryableException, status_error
from weaver.compat.tinker.lib import background
from weaver.compat.tinker.transports import domain, in_process, local_calls
from weaver.compat.tinker.transports.contract import Call, Json, Pass, Promise, SampleAsk
from weaver.compat.tinker.transports.in_process import InProcess
from weaver.compat.tinker.transports.local_submits import SUBMITS, is_slow
from weaver.domain import ForwardBackward
from weaver.errors import Forgotten, SequenceRefused, UserError, WeaverError

T = TypeVar("T")

_ADDRESS: Final = "inprocess://weaver"


class Local:
    """See `contract.Transport`. The service is made when it is first needed."""

    heartbeat_seconds = 60.0
    traces_losses = True
    numbers_clones = True

    def __init__(self, data_dir: str | None = None) -> None:
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._opened: InProcess | None = None

    @property
    def where(self) -> Json:
        return {"data_dir": str(in_process.in_process(self._data_dir).data_dir)}

    def began(self, future: "Future[Any]", *, is_sample: bool) -> None:
        in_process.calls.watch(future, is_sample=is_sample)

    async def open(self) -> None:
        if not self._is_open:
            self._opened = await background.in_thread(lambda: in_process.in_process(self._data_dir))

    @property
    def _is_open(self) -> bool:
        """A process that was forked has its parent's objects, and none of its threads."""
        return self._opened is not None and self._opened.process == os.getpid()

    @property
    def _here(self) -> InProcess:
        if self._opened is None or not self._is_open:
            self._opened = in_process.in_process(self._data_dir)
        return self._opened

    async def call(self, call: Call) -> Json:
        here = self._here
        if call.endpoint.endswith("/trace_export"):
            handler = local_calls.trace_export(here.data_dir)
        else:
            handler = local_calls.HANDLERS[call.method, call.endpoint]
        answer = await self._ask(
            call.endpoint, lambda: handler(here.service, call), slow=call.endpoint in local_calls.SLOW
        )
        if call.endpoint == "/create_session":
            here.sessions.add(answer["session_id"])
        elif call.endpoint == "/sessions/{session}/finish":
            here.sessions.discard(call.path["session"])
        return answer

    def encode(self, asked: Pass) -> ForwardBackward:
        return _told("/forward_backward", lambda: domain.forward_backward(asked))

    async def submit_pass(self, model_id: str, seq_id: int, encoded: ForwardBackward) -> Promise:
        here = self._here
        submit = lambda: here.service.submit(model_id, seq_id, encoded).request_id  # noqa: E731
        return Promise(_told("/forward_backward", submit))

    async def submit(self, call: Call) -> Promise:
        here, submit = self._here, SUBMITS[call.endpoint]
        request_id = await self._ask(call.endpoint, lambda: submit(here.service, call), slow=is_slow(call))
        return Promise(request_id)

    async def sample(self, sampling_session_id: str, seq_id: int, ask: SampleAsk) -> Promise:
        here = self._here

        def sampled() -> Promise:
            ticket = here.service.sample(sampling_session_id, seq_id, **domain.sample_arguments(ask))
            return Promise(ticket.request_id, ticket.sequence_ids)

        return _told("/asample", sampled)

    async def result(self, promise: Promise) -> Json:
        return answers.result_json(await self._settled(promise))

    async def pass_result(self, promise: Promise) -> types.ForwardBackwardOutput:
        return domain.forward_backward_output(await self._settled(promise))

    async def sample_result(self, promise: Promise) -> types.SampleResponse:
        try:
            return domain.sample_response(await self._settled(promise))
        except asyncio.CancelledError:
            self._here.service.cancel(promise.request_id)
            raise

    async def give_up(self, model_id: str, seq_ids: Sequence[int]) -> None:
        for seq_id in seq_ids:
            error = SequenceRefused(f"seq_id {seq_id} is not used: the loss between two passes failed")
            try:
                self._here.service.refuse(model_id, seq_id, error)
            except WeaverError:
                continue  # that is how it is refused

    async def tokenizer(self, base_model: str) -> str | None:
        await self.open()
        service = self._here.service
        facts = await self._ask("/tokenizer", lambda: service.base_model(base_model), slow=True)
        return facts.tokenizer_location

    async def close(self) -> None:
        """The service is the process's, and others may use it."""

    async def _ask(self, endpoint: str, work: Callable[[], T], *, slow: bool) -> T:
        if not slow:
            return _told(endpoint, work)
        return await background.in_thread(lambda: _told(endpoint, work))

    async def _settled(self, promise: Promise) -> Any:
        """The result, or the exception that a user gets in its place."""
        service = self._here.service
        future: Future[Any] = _told("/retrieve_future", lambda: service.future(promise.request_id))
        await _wait(future)
        if future.cancelled():
            raise RetryableException(f"the request {promise.request_id} was cancelled")
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, Forgotten):
            raise RetryableException(str(error)) from error
        category = types.RequestErrorCategory("user" if isinstance(error, UserError) else "server")
        sentence = f"Request failed: {error or type(error).__name__}"
        raise RequestFailedError(sentence, promise.request_id, category) from error


async def _wait(future: "Future[Any]") -> None:
    """Until it is settled. Others may wait for the same one: it is never cancelled from here."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(lambda _: loop.call_soon_threadsafe(wake))
    await waiter


def _told(endpoint: str, work: Callable[[], T]) -> T:
    """Its result; weaver's errors become what the same refusal is over the wire."""
    try:
        return work()
    except WeaverError as error:
        raise _refusal(endpoint, error) from error


def _refusal(endpoint: str, error: WeaverError) -> APIStatusError:
    status, body = status_of(error), {"detail": str(error) or type(error).__name__}
    request = httpx.Request("POST", f"{_ADDRESS}{endpoint}")
    return status_error(status, body, request, httpx.Response(status, json=body, request=request))
