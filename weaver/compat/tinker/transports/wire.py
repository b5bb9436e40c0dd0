"""Tinker's protocol as a client speaks it: acknowledgements at once, results by long polls."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import httpx

from weaver.compat.tinker import types
from weaver.compat.tinker.exceptions import (
    APIConnectionError,
    APIStatusError,
    RequestFailedError,
    RetryableException,
)
from weaver.compat.tinker.lib import background
from weaver.compat.tinker.transports import encoding
from weaver.compat.tinker.transports.contract import Call, Json, Pass, Promise, SampleAsk
from weaver.compat.tinker.transports.http import Http, from_json, to_json
from weaver.compat.tinker.version import __version__

logger = logging.getLogger(__name__)

PROTOBUF: Final = "application/x-protobuf"
POLL_SECONDS: Final = 45.0
MOST_SAMPLES: Final = 512
"""Each that is under way holds a connection in its long poll, and systems give a process 1024 open files."""
_REFUSALS: Final = 3
"""How often a poll may be refused with 400, which a proxy may have made up."""
_LONGEST_DELAY: Final = 30.0
_TOLD_EVERY: Final = 60.0


class Wire:
    """See `contract.Transport`."""

    heartbeat_seconds = 10.0
    traces_losses = False
    numbers_clones = False

    def __init__(self, base_url: str, api_key: str | None, headers: Mapping[str, str]) -> None:
        self.api_key = api_key
        self._http = Http(base_url, api_key, headers)
        self._opening: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(MOST_SAMPLES)
        self._told = 0.0

    @property
    def where(self) -> Json:
        return {"base_url": self._http.base_url}

    def began(self, future: "Future[Any]", *, is_sample: bool) -> None:
        """What a server has accepted happens without this process."""

    async def open(self) -> None:
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = background.task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        """What the server wants of its clients; an answer of {} means the protocol's defaults."""
        body = {"sdk_version": __version__}
        settings = types.ClientConfigResponse.model_validate(
            await self._http.json(Call("POST", "/client/config", body=body))
        )
        self.traces_losses = settings.custom_loss_server_side
        self.numbers_clones = settings.sample_join_sampling_session
        self._places = asyncio.Semaphore(min(MOST_SAMPLES, settings.sample_max_concurrent_requests))

    async def call(self, call: Call) -> Json:
        return await self._http.json(call)

    def encode(self, asked: Pass) -> Any:
        return encoding.forward_backward_request(asked)

    async def submit_pass(self, model_id: str, seq_id: int, encoded: Any) -> Promise:
        encoded.model_id, encoded.seq_id = model_id, seq_id
        request = self._http.post("/forward_backward", encoded.SerializeToString(), {"Content-Type": PROTOBUF})
        return _promise(from_json(await self._http.answered(request)))

    async def submit(self, call: Call) -> Promise:
        return _promise(await self._http.json(call))

    async def sample(self, sampling_session_id: str, seq_id: int, ask: SampleAsk) -> Promise:
        await self.open()
        await self._places.acquire()
        try:
            call = Call("POST", "/asample", body=_sample_body(sampling_session_id, seq_id, ask))
            return _promise(await self._http.json(call))
        except BaseException:
            self._places.release()
            raise

    async def result(self, promise: Promise) -> Json:
        answer = from_json(await self._settled(promise, "application/json"))
        return answer

    async def pass_result(self, promise: Promise) -> types.ForwardBackwardOutput:
        return encoding.forward_backward_output((await self._settled(promise, PROTOBUF)).content)

    async def sample_result(self, promise: Promise) -> types.SampleResponse:
        try:
            return encoding.sample_response((await self._settled(promise, PROTOBUF)).content)
        except asyncio.CancelledError:
            background.task(self._http.json(Call("POST", "/cancel_future", body={"request_id": promise.request_id})))
            raise
        finally:
            self._places.release()

    async def give_up(self, model_id: str, seq_ids: Sequence[int]) -> None:
        """The wire has no word for it: the server gives up a number by itself when it stays away."""

    async def tokenizer(self, base_model: str) -> str | None:
        return None

    async def close(self) -> None:
        await self._http.close()

    async def _settled(self, promise: Promise, accept: str) -> httpx.Response:
        """Poll until there is a result. Raises RequestFailedError for an operation that failed."""
        body = to_json({"request_id": promise.request_id, "allow_metadata_only": False})
        headers = {"Content-Type": "application/json", "Accept": accept}
        failures = refusals = 0
        while True:
            request = self._http.post("/retrieve_future", body, headers)
            try:
                response = await self._http.once(request, POLL_SECONDS)
            except APIConnectionError as error:
                await self._pause(failures, error)
                failures += 1
                continue
            except APIStatusError as error:
                refusals += error.status_code == 400
                if refusals > _REFUSALS or not await self._may_poll_on(error, promise, failures):
                    raise ValueError(f"Error retrieving result: {error}") from error
                failures += error.status_code not in (400, 408)
                continue
            failures = 0
            if response.headers.get("content-type", "").startswith(PROTOBUF):
                return response
            if not self._tries_again(from_json(response), promise):
                return response

    async def _may_poll_on(self, error: APIStatusError, promise: Promise, failures: int) -> bool:
        """Whether the result may still come. Raises RetryableException when it never will."""
        if error.status_code == 408:
            self._tell_why(error.body)
            return True
        if error.status_code == 410:
            raise RetryableException(f"the result of {promise.request_id} is gone: {error}") from error
        if error.status_code in (402, 429) or error.status_code >= 500:
            await self._pause(failures, error)
            return True
        return error.status_code == 400

    async def _pause(self, failures: int, error: Exception) -> None:
        logger.debug("polling is tried again: %s", error)
        await asyncio.sleep(min(0.1 * 2 ** min(failures, 16), _LONGEST_DELAY))

    def _tries_again(self, answer: Json, promise: Promise) -> bool:
        """Whether a poll ended without a result. Raises RequestFailedError when the operation failed."""
        if "error" in answer:
            known = str(answer.get("category", "")).lower()
            category = types.RequestErrorCategory(known if known in ("user", "server") else "unknown")
            raise RequestFailedError(f"Request failed: {answer['error']}", promise.request_id, category)
        if answer.get("type") == "try_again":
            self._tell_why(answer)
            return True
        return answer.get("status") == "complete_metadata"

    def _tell_why(self, answer: object) -> None:
        """What keeps requests waiting, once a minute."""
        if not isinstance(answer, dict) or answer.get("queue_state") in (None, "active"):
            return
        if time.monotonic() - self._told > _TOLD_EVERY:
            self._told = time.monotonic()
            logger.warning("a request is paused: %s", answer.get("queue_state_reason") or answer["queue_state"])


def _promise(answer: Json) -> Promise:
    return Promise(str(answer["request_id"]), tuple(answer.get("sample_sequence_ids") or ()))


def _sample_body(sampling_session_id: str, seq_id: int, ask: SampleAsk) -> Json:
    body: Json = {
        "sampling_session_id": sampling_session_id,
        "seq_id": seq_id,
        "num_samples": ask.num_samples,
        "prompt": ask.prompt.model_dump(mode="json", exclude_none=True),
        "sampling_params": ask.sampling_params.model_dump(exclude_none=True),
        "prompt_logprobs": ask.prompt_logprobs,
        "topk_prompt_logprobs": ask.topk_prompt_logprobs,
        "topk_sample_logprobs": ask.topk_sample_logprobs,
        "prompt_alt_tokens_k": ask.prompt_alt_tokens_k,
        "record_stability_info": ask.record_stability_info,
    }
    if ask.prompt_logprobs_last_n is not None:
        body["prompt_logprobs_last_n"] = ask.prompt_logprobs_last_n
    if ask.target_prompt_logprobs is not None:
        tensor = ask.target_prompt_logprobs
        fields = ("dtype", "shape", "sparse_crow_indices", "sparse_col_indices")
        given = {field: getattr(tensor, field) for field in fields if getattr(tensor, field) is not None}
        body["target_prompt_logprobs"] = {"data": tensor.data, **given}
    return body
