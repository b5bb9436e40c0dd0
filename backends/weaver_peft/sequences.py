"""The requests of a decode loop and their rows: one row is one sample being drawn.

Shapes: n tokens of a prompt, L tokens of a row (its prompt, then what was drawn).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weaver.domain import (
    AdapterRef,
    DrawnToken,
    IntArray,
    SampledSequence,
    SampleRequest,
    SampleResult,
    SamplingParams,
    StopReason,
    TokenRows,
    TopLogprobs,
)
from weaver.errors import InvalidInput
from weaver.sampler import SampleFuture
from weaver_peft.call import LoraWeights
from weaver_peft.drawing import Likeliest, row_generator
from weaver_peft.prefix_cache import common
from weaver_peft.prompt_logprobs import PromptLogprobs
from weaver_peft.stopping import StopRule

MOST_LEFT: Final = 2**27
"""Tokens that the sampling masks of one request may have: half a gibibyte while they are drawn."""


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. `adapter`, `weights` and `stop` are known once its first row is admitted; the weights of
    one that follows a model may be replaced by newer ones after that."""

    request: SampleRequest
    future: SampleFuture
    prompt: PromptLogprobs
    started: int = 0
    cached_prompt_tokens: int = 0
    adapter: AdapterRef | None = None
    weights: LoraWeights | None = None
    stop: StopRule | None = None
    sequences: dict[int, SampledSequence] = field(default_factory=dict)
    left: int = 0  # tokens in the masks so far

    @classmethod
    def of_request(cls, request: SampleRequest, future: SampleFuture) -> "Job":
        return cls(request, future, PromptLogprobs(request))

    @property
    def adapter_id(self) -> str:
        """The id of the adapter it uses now; empty for the base model."""
        return self.adapter.adapter_id if self.adapter is not None else ""

    @property
    def columns_of(self) -> str:
        """Columns may be shared by jobs that give the same here: they were computed with the same weights, or with
        whatever one inflight session has seen."""
        follows = self.request.inflight
        return self.adapter_id if follows is None else f"inflight {follows.session_id}"

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def start_row(self) -> "Row":
        """The next sample's row."""
        self.started += 1
        self.future.begun = True
        return Row(self, self.started - 1)

    def settle(self) -> None:
        """Hand the result over once every sample is there."""
        if self.is_over or len(self.sequences) < self.request.num_samples:
            return
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self._result())

    def _result(self) -> SampleResult:
        request, own, targets, alternatives = (
            self.request,
            self.prompt.own,
            self.prompt.targets,
            self.prompt.alternatives,
        )
        return SampleResult(
            sequences=tuple(self.sequences[index] for index in range(request.num_samples)),
            prompt_logprobs_n=own.logprobs_n if own is not None and request.prompt_logprobs else None,
            topk_prompt_logprobs=own.top if own is not None and request.topk_prompt_logprobs else None,
            target_logprobs=None if targets is None else targets.scored,
            prompt_alternatives=None if alternatives is None else alternatives.drawn,
            cached_prompt_tokens=self.cached_prompt_tokens,
        )

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Row:
    """One sample: the tokens so far, the logprobs of those drawn, and the numbers it draws with."""

    def __init__(self, job: Job, index: int) -> None:
        prompt_n, params = job.request.prompt_n, job.request.params
        self.job = job
        self.index = index
        self.generator = row_generator(params.seed, index)
        self.drawn: list[int] = []
        self.logprobs: list[float] = []
        self.likeliest: list[Likeliest] = []
        self.left: list[NDArray[np.int32]] = []
        # Asked at every step, of every row:
        self.is_telling = job.request.sampling_mask
        self.is_early = params.min_tokens > 0  # there are tokens that cannot come yet
        self._tokens_L = np.empty(len(prompt_n) + params.max_tokens, np.int64)
        self._tokens_L[: len(prompt_n)] = prompt_n

    @property
    def params(self) -> SamplingParams:
        return self.job.request.params

    @property
    def length(self) -> int:
        return len(self.job.request.prompt_n) + len(self.drawn)

    @property
    def tokens_L(self) -> IntArray:
        return self._tokens_L[: self.length]

    @property
    def needed_columns(self) -> int:
        """What must be cached before the row can decode: all but its last token, which the decode call itself adds."""
        return self.length - 1

    @property
    def barred(self) -> Collection[int]:
        """Of a row that is early: the tokens that cannot come yet."""
        return self.job.stop.token_ids if self.job.stop is not None else ()

    @property
    def answers_for_prompt(self) -> bool:
        """Whether this row's prefill is the one that what is asked about the prompt comes from."""
        return self.index == 0 and not self.drawn

    @property
    def copyable_columns(self) -> int:
        """How many of the needed columns need not be computed by this row's own prefill."""
        if not self.answers_for_prompt:
            return self.needed_columns
        return min(self.needed_columns, self.job.prompt.unscored_columns)

    def append(self, token: int, logprob: float, likeliest: Likeliest | None = None) -> None:
        self._tokens_L[self.length] = token
        self.drawn.append(token)
        self.logprobs.append(logprob)
        if self.is_early:
            self.is_early = len(self.drawn) < self.params.min_tokens
        if likeliest is not None:
            self.likeliest.append(likeliest)
        if self.job.request.listener is not None and not self.job.is_over:
            told = () if likeliest is None else tuple(zip(likeliest.tokens, likeliest.logprobs, strict=True))
            self.job.request.listener(DrawnToken(self.index, token, logprob, told))

    def tell_left(self, left: NDArray[np.int32]) -> None:
        """What the last token was drawn among."""
        self.left.append(left)
        self.job.left += len(left)
        if self.job.left > MOST_LEFT:
            self.job.fail(
                InvalidInput(
                    f"return_sampling_mask: the masks have more than {MOST_LEFT} tokens together; ask for fewer "
                    "samples or tokens, or lower top_p or top_k"
                )
            )

    def stop_reason(self) -> StopReason | None:
        """Why the sequence is over; None while it is not."""
        if self.drawn and self.job.stop is not None and self.job.stop.ends(self.drawn):
            return StopReason.STOP
        return StopReason.LENGTH if len(self.drawn) >= self.params.max_tokens else None

    def finish(self, reason: StopReason) -> None:
        """Hand the sample to its job."""
        tokens, logprobs = np.array(self.drawn, np.int64), np.array(self.logprobs, np.float32)
        top = _table(self.likeliest, self.job.request.topk_sample_logprobs)
        mask = _rows(self.left) if self.is_telling else None
        self.job.sequences[self.index] = SampledSequence(tokens, logprobs, reason, top, mask)
        self.job.settle()


def _rows(left: Sequence[NDArray[np.int32]]) -> TokenRows:
    starts = np.cumsum([0, *map(len, left)], dtype=np.int64)
    return TokenRows(starts, np.concatenate([np.zeros(0, np.int32), *left], dtype=np.int64))


def _table(likeliest: list[Likeliest], k: int) -> TopLogprobs | None:
    if not k:
        return None
    table = TopLogprobs(np.zeros((len(likeliest), k), np.int32), np.full((len(likeliest), k), np.nan, np.float32))
    for row, each in enumerate(likeliest):
        table.token_ids_nk[row, : len(each.tokens)] = each.tokens
        table.logprobs_nk[row, : len(each.tokens)] = each.logprobs
    return table


def shared_columns(row: Row, other: Row, cached: int) -> int:
    """How many of the columns that `row` needs are among the first `cached` of `other`."""
    if row.job.columns_of != other.job.columns_of:
        return 0
    limit = min(row.copyable_columns, cached)
    if row.job is other.job and limit <= len(row.job.request.prompt_n):
        return limit
    return common(row.tokens_L[:limit], other.tokens_L)
