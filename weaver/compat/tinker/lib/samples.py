"""What sampling clients do around a request: its number, its checks, and asking again."""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from weaver.compat.tinker import types
from weaver.compat.tinker.exceptions import APIConnectionError, RetryableException
from weaver.compat.tinker.lib.retry_handler import RetryConfig
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.transports.contract import Call, SampleAsk

T = TypeVar("T")

NUMBERS_OF_A_CLONE: Final = 10**9
"""The clone number n numbers its requests from n times this on."""


class Numbers:
    """The numbers of one client's requests. Clones of a client, in other processes, have numbers of their own."""

    def __init__(self, holder: Session, sampling_session_id: str, *, is_clone: bool) -> None:
        self._holder, self._sampler = holder, sampling_session_id
        self._numbers: Iterator[int] | None = None if is_clone else itertools.count()
        self._lock = asyncio.Lock()

    async def next(self) -> int:
        if self._numbers is None:
            async with self._lock:
                if self._numbers is None:
                    self._numbers = itertools.count(NUMBERS_OF_A_CLONE * await self._join())
        return next(self._numbers)

    async def _join(self) -> int:
        await self._holder.ready()
        if not self._holder.transport.numbers_clones:
            return uuid.uuid4().int % NUMBERS_OF_A_CLONE + 1
        call = Call("POST", "/join_sampling_session", body={"sampling_session_id": self._sampler})
        return int((await self._holder.call(call))["client_counter"])


class Retries:
    """Asks once more for what got lost, as its configuration says."""

    def __init__(self, config: RetryConfig) -> None:
        self._config = config
        self._places = None if config.max_connections is None else asyncio.Semaphore(config.max_connections)
        self._progress = time.monotonic()
        self._waiting = 0

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        if self._places is None:
            return await self._run(attempt)
        async with self._places:
            return await self._run(attempt)

    async def _run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        config = self._config
        if not config.enable_retry_logic:
            return await attempt()
        if self._waiting == 0:
            self._progress = time.monotonic()
        self._waiting += 1
        try:
            for number in itertools.count():
                try:
                    result = await attempt()
                except config.retryable_exceptions as error:
                    self._refuse_when_stuck(error)
                    delay = min(config.retry_delay_base * 2 ** min(number, 32), config.retry_delay_max)
                    await asyncio.sleep(delay * (1 + config.jitter_factor * random.uniform(-1, 1)))
                else:
                    self._progress = time.monotonic()
                    return result
        finally:
            self._waiting -= 1
        raise AssertionError("it is tried for ever")

    def _refuse_when_stuck(self, error: Exception) -> None:
        waited = time.monotonic() - self._progress
        if self._config.enable_stuck_detection and waited > self._config.progress_timeout:
            sentence = f"No progress made in {waited:.0f}s. Requests appear to be stuck."
            if isinstance(error, APIConnectionError):
                raise APIConnectionError(error.request, sentence) from error
            raise RetryableException(sentence) from error


def named(sequences: Sequence[types.SampledSequence], sequence_ids: Sequence[str]) -> Sequence[types.SampledSequence]:
    """With the ids that provenance spans name them by."""
    return [replace(one, sequence_id=name) for one, name in zip(sequences, sequence_ids, strict=True)]


def check(ask: SampleAsk) -> None:
    """Raise ValueError for what is wrong whatever the model is."""
    targets, last_n = ask.target_prompt_logprobs, ask.prompt_logprobs_last_n
    if targets is not None:
        if targets.dtype != "int64":
            raise ValueError(f"target_prompt_logprobs holds {targets.dtype}; it must be token ids, int64")
        if targets.shape is None or len(targets.shape) != 2:
            raise ValueError(f"target_prompt_logprobs has shape {targets.shape}; it must be [len(prompt) - 1, K]")
    if ask.prompt_alt_tokens_k < 0:
        raise ValueError(f"prompt_alt_tokens_k is {ask.prompt_alt_tokens_k}; it must be 0 or more")
    if last_n is not None and last_n < 1:
        raise ValueError(f"prompt_logprobs_last_n is {last_n}; it must be 1 or more")
    if last_n is not None and not ask.prompt_logprobs:
        raise ValueError("prompt_logprobs_last_n is about prompt logprobs; set include_prompt_logprobs too")
