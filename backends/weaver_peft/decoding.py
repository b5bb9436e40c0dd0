"""The decode loop: requests join and leave a running batch, in which every row has an adapter of its own.

A step admits rows while there is room, prefills some of what they need, and draws one token for every row that is
ready.

Shapes: R rows that decode, V vocabulary, H hidden size.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from weaver.domain import SampleRequest
from weaver.errors import InvalidInput
from weaver.sampler import SampleFuture
from weaver_peft.adapter_cache import AdapterCache
from weaver_peft.base_model import BaseModel
from weaver_peft.call import Call, LoraWeights
from weaver_peft.drawing import draw
from weaver_peft.inflight import InflightWeights, Published
from weaver_peft.kv_cache import CacheShape, KVCache
from weaver_peft.prefill import Prefill, segments_of
from weaver_peft.prefix_cache import PrefixCache
from weaver_peft.prompt_logprobs import output_logits
from weaver_peft.sequences import Job, Row
from weaver_peft.slot_attention import DecodeAttention
from weaver_peft.stopping import Detokenizer, StopRule

KEPT_PART = 4
"""Sequences that are over may take this part of the cache, and as much less as those that run need."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much runs at once. `prefill_tokens` of a step are `busy_prefill_tokens` where rows are waiting to decode."""

    rows: int
    cache_bytes: int
    adapter_bytes: int
    prefill_tokens: int
    busy_prefill_tokens: int


@dataclass(slots=True)
class Statistics:
    """What the loop has done so far."""

    prefilled_tokens: int = 0
    drawn_tokens: int = 0
    decode_calls: int = 0
    paused_rows: int = 0


class DecodeLoop:
    """Everything here is called by one thread."""

    def __init__(self, base: BaseModel, limits: Limits) -> None:
        self.statistics = Statistics()
        self.obstacle: str | None = None  # why requests that wait do; read by any thread
        self._base = base
        self._limits = limits
        self._cache = KVCache(CacheShape.of_model(base.model))
        self._finished = PrefixCache()
        self._prefill = Prefill(base, self._cache, self._finished)
        self._adapters = AdapterCache(base, limits.adapter_bytes)
        self._inflight = InflightWeights()
        self._detokenizer = Detokenizer(base)
        self._jobs: deque[Job] = deque()  # those with samples that have not begun
        self._paused: deque[Row] = deque()  # rows that made room; they go first
        self._decoding: list[Row] = []  # in the order they were admitted

    @property
    def is_idle(self) -> bool:
        return not (self._jobs or self._paused or self._running())

    def add(self, request: SampleRequest, future: SampleFuture) -> None:
        """Queue a request; its result or its error will arrive in `future`."""
        self._jobs.append(Job.of_request(request, future))

    def publish(self, model_id: str, published: Published) -> None:
        """Requests that follow the model go on with this version from the next step on, or with one they have that is
        newer."""
        replaced = self._inflight.publish(model_id, published)
        if replaced is not None:
            self._adapters.forget(replaced)

    def forget(self, adapter_id: str) -> None:
        """Free the adapter once no row uses it."""
        self._inflight.forget(adapter_id)
        self._adapters.forget(adapter_id)
        self._finished.forget(adapter_id)
        self._trim_adapters()

    def step(self) -> None:
        """One token for every row that is ready, after some prefilling for those that are not."""
        with torch.no_grad():
            self._leave_the_settled()
            self._follow()
            self._admit()
            budget = self._limits.busy_prefill_tokens if self._decoding else self._limits.prefill_tokens
            self._begin(self._prefill.step(self._decoding, budget))
            self.statistics.prefilled_tokens = self._prefill.computed_tokens
            self._make_room()
            if self._decoding:
                self._decode()
            self._trim_adapters()

    def fail_running(self, error: Exception) -> None:
        """Give up every request that has begun, and the cache, of which nothing is known after an error."""
        begun = [job for job in self._jobs if job.stop is not None]
        for job in [*begun, *(row.job for row in [*self._running(), *self._paused])]:
            job.fail(error)
        self._decoding = []
        self._cache = KVCache(self._cache.shape)
        self._finished = PrefixCache()
        self._prefill = Prefill(self._base, self._cache, self._finished, self._prefill.computed_tokens)
        self._leave_the_settled()

    def fail_all(self, error: Exception) -> None:
        """Give up everything."""
        for job in self._jobs:
            job.fail(error)
        self.fail_running(error)

    def _running(self) -> list[Row]:
        return [*self._decoding, *self._prefill.rows]

    def _leave_the_settled(self) -> None:
        """Rows of requests that were cancelled or have failed go, and what has not begun of them."""
        self._jobs = deque(job for job in self._jobs if not job.is_over)
        self._paused = deque(row for row in self._paused if not row.job.is_over)
        self._prefill.remove({row for row in self._prefill.rows if row.job.is_over})
        self._leave([row for row in self._decoding if row.job.is_over])

    def _leave(self, rows: Iterable[Row]) -> None:
        leaving = set(rows)
        for row in leaving:
            self._cache.leave(row)
        self._decoding = [row for row in self._decoding if row not in leaving]

    def _admit(self) -> None:
        """Paused rows first, then samples in the order they were asked for, until one does not fit."""
        while self._paused and self._fits(self._paused[0].length):
            self._prefill.add(self._paused.popleft())
        while self._jobs and not self._paused and self._fits(len(self._jobs[0].request.prompt_n)):
            job = self._jobs[0]
            if job.stop is None and not self._prepare(job):
                self._jobs.popleft()
                continue
            self._prefill.add(job.start_row())
            if job.started == job.request.num_samples:
                self._jobs.popleft()

    def _follow(self) -> None:
        """Requests that have begun go on with the newest weights of the model they follow, where there are newer ones
        than theirs; what they have cached stays."""
        if not self._inflight.changed:
            return
        self._inflight.changed = False
        begun = {row.job for row in [*self._running(), *self._paused]} | {job for job in self._jobs if job.stop}
        for job in begun:
            if self._inflight.adapter_of(job.request) != job.adapter:
                self._prepare(job)
        self._leave_the_settled()

    def _prepare(self, job: Job) -> bool:
        """Load what the job needs; where that fails, it alone fails."""
        try:
            job.adapter = self._inflight.adapter_of(job.request)
            if job.adapter is not None:
                job.weights = self._adapters.get(job.adapter)
            job.stop = StopRule.of_params(job.request.params, self._base, self._detokenizer)
        except Exception as error:  # noqa: BLE001 - an adapter's folder may hold anything; the others must not suffer
            job.fail(error)
        return job.stop is not None

    def _fits(self, length: int) -> bool:
        """Whether one more row of that length can run; if not, `obstacle` says why. A row alone always fits."""
        running = self._running()
        used, needed, most = self._bytes(running), self._cache.shape.slot_bytes(length), self._limits.cache_bytes
        self.obstacle = None
        if running and len(running) >= self._limits.rows:
            self.obstacle = f"{len(running)} sequences are being drawn, as many as go at once"
        elif running and used + needed > most:
            self.obstacle = f"the cache is full: {len(running)} sequences hold {used >> 20} of {most >> 20} MiB"
        self._finished.shrink(max(0, most - used - needed))
        return self.obstacle is None

    def _bytes(self, rows: list[Row]) -> int:
        return sum(self._cache.shape.slot_bytes(row.length) for row in rows)

    def _begin(self, rows: list[Row]) -> None:
        """These rows' columns are in the cache."""
        self._decoding += rows
        self._finish_those_over(rows)

    def _make_room(self) -> None:
        """Pause the rows admitted last while the cache would outgrow its bounds; they prefill again later."""
        self._finished.shrink(max(0, self._limits.cache_bytes - self._bytes(self._running())))
        while len(self._decoding) > 1 and self._bytes(self._running()) > self._limits.cache_bytes:
            row = self._decoding[-1]
            self._leave([row])
            self._paused.appendleft(row)
            self.statistics.paused_rows += 1

    def _decode(self) -> None:
        rows = sorted(self._decoding, key=lambda row: row.job.adapter_id)
        drawn = draw(
            self._next_logits(rows),
            [row.params for row in rows],
            [row.generator.random() if row.params.temperature else 0.0 for row in rows],
            [row.job.request.topk_sample_logprobs for row in rows],
            {place: row.barred for place, row in enumerate(rows) if row.is_early},
            [place for place, row in enumerate(rows) if row.is_telling],
        )
        self.statistics.decode_calls += 1
        self.statistics.drawn_tokens += len(rows)
        for row, token, logprob, likeliest in zip(rows, drawn.tokens, drawn.logprobs, drawn.likeliest):
            if logprob != logprob:
                row.job.fail(
                    InvalidInput(f"{_model_of(row.job)} gives logits that are not finite; no token can be drawn")
                )
            row.append(token, logprob, likeliest)
        for place, left in drawn.left.items():
            rows[place].tell_left(left)
        self._finish_those_over(rows)

    def _next_logits(self, rows: list[Row]) -> torch.Tensor:
        """(R, V) for the token after each row's last."""
        self._cache.extend()
        device = self._base.device
        tokens_R = torch.tensor([row.tokens_L[-1] for row in rows], device=device)
        positions_R = torch.tensor([row.length - 1 for row in rows], device=device)
        weights: list[LoraWeights | None] = [row.job.weights for row in rows]
        call = Call(segments_of([1] * len(rows), weights), DecodeAttention(self._cache, rows))
        return output_logits(self._base, self._base.hidden_states(tokens_R, positions_R, call), call.segments)

    def _finish_those_over(self, rows: list[Row]) -> None:
        """Rows whose sequence is complete leave and are handed over."""
        for row in rows:
            reason = row.stop_reason()
            if reason is not None:
                self._keep(row)
                row.finish(reason)
                self._leave([row])

    def _keep(self, row: Row) -> None:
        """Keep its columns for prompts that begin like it. One of a request's samples is enough for its prompt."""
        if row.index == 0:
            columns_2NGnD = self._cache.columns(row)
            self._finished.add(row.job.columns_of, row.tokens_L[: columns_2NGnD.shape[3]], columns_2NGnD)
            self._finished.shrink(self._limits.cache_bytes // KEPT_PART)

    def _trim_adapters(self) -> None:
        rows = [*self._running(), *self._paused]
        self._adapters.trim({row.job.adapter_id for row in rows} | {job.adapter_id for job in self._jobs if job.stop})


def _model_of(job: Job) -> str:
    return f"the adapter {job.adapter_id!r}" if job.adapter_id else "the base model"
