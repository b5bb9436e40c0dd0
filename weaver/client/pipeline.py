"""Streams of samples into passes of a size, and the next pass on its way while one runs."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from weaver.client.operations import AsyncOperationHandle
from weaver.client.training_client import AsyncTrainingClient
from weaver.types import AdamParams, Datum

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenBudgetBatch(Generic[T]):
    """Samples for one pass, and how many tokens they have."""

    items: tuple[T, ...]
    tokens: int


class TokenBudgetBatcher(Generic[T]):
    """Cuts a stream into batches of at most `global_batch_size * max_sequence_length` tokens.

    A sample that would go beyond begins the next batch. The rest at the end is left out unless `drop_last` is False.
    """

    def __init__(
        self,
        source: Iterable[T],
        *,
        length_fn: Callable[[T], int],
        global_batch_size: int,
        max_sequence_length: int,
        drop_last: bool = True,
    ) -> None:
        if global_batch_size <= 0:
            raise ValueError("global_batch_size must be positive")
        if max_sequence_length <= 0:
            raise ValueError("max_sequence_length must be positive")
        self._source, self._length_of = source, length_fn
        self._most, self._longest, self._drop_last = (
            global_batch_size * max_sequence_length,
            max_sequence_length,
            drop_last,
        )

    def __iter__(self) -> Iterator[TokenBudgetBatch[T]]:
        items: list[T] = []
        tokens = 0
        for item in self._source:
            length = self._length(item)
            if tokens + length > self._most:
                yield TokenBudgetBatch(tuple(items), tokens)
                items, tokens = [], 0
            items.append(item)
            tokens += length
            if tokens == self._most:
                yield TokenBudgetBatch(tuple(items), tokens)
                items, tokens = [], 0
        if items and not self._drop_last:
            yield TokenBudgetBatch(tuple(items), tokens)

    def _length(self, item: T) -> int:
        length = int(self._length_of(item))
        if length <= 0:
            raise ValueError("sample token lengths must be positive")
        if length > self._longest:
            raise ValueError(f"sample length {length} exceeds max_sequence_length={self._longest}")
        return length


@dataclass(frozen=True, slots=True)
class CompletedTrainingStep:
    """What a pass and the step after it gave."""

    step: int
    forward_backward: Any
    optimizer: Any


@dataclass(frozen=True, slots=True)
class _Submitted:
    step: int
    forward_backward: AsyncOperationHandle
    optimizer: AsyncOperationHandle


class SubmitAheadQueue:
    """Keeps up to `submit_ahead` steps accepted behind the one that runs.

    Call `submit`, prepare the next data, then `wait_for_room`; `drain` before saving or at the end.
    """

    def __init__(
        self, training_client: AsyncTrainingClient, *, submit_ahead: int = 1, loss_fn: str = "cross_entropy"
    ) -> None:
        if submit_ahead < 0:
            raise ValueError("submit_ahead must be non-negative")
        self._client, self._ahead, self._loss = training_client, submit_ahead, loss_fn
        self._submitted: deque[_Submitted] = deque()

    @property
    def pending_count(self) -> int:
        """How many steps were submitted whose results have not been fetched."""
        return len(self._submitted)

    async def submit(self, step: int, data: Sequence[Datum], optimizer: AdamParams) -> None:
        """Send a pass and a step. Raises RuntimeError when there is no room."""
        if len(self._submitted) > self._ahead:
            raise RuntimeError("call wait_for_room() before submitting another step")
        first = await self._client.forward_backward(data, self._loss, wait=False)
        try:
            second = await self._client.optim_step(optimizer, wait=False)
        except Exception:
            await asyncio.gather(first.result(), return_exceptions=True)
            raise
        self._submitted.append(_Submitted(step, first, second))

    async def wait_for_room(self) -> CompletedTrainingStep | None:
        """The oldest step's results, if no other could be submitted before they are there."""
        return await self._oldest() if len(self._submitted) > self._ahead else None

    async def drain(self) -> list[CompletedTrainingStep]:
        """The results of all. When steps have failed, the first failure is raised once all have ended."""
        done: list[CompletedTrainingStep] = []
        failures: list[Exception] = []
        while self._submitted:
            try:
                done.append(await self._oldest())
            except Exception as error:  # noqa: BLE001 -- it is raised below, when the others have ended
                failures.append(error)
        if failures:
            raise failures[0]
        return done

    async def _oldest(self) -> CompletedTrainingStep:
        oldest = self._submitted.popleft()
        results = await asyncio.gather(
            oldest.forward_backward.result(), oldest.optimizer.result(), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return CompletedTrainingStep(oldest.step, *results)
