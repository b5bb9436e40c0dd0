"""The requests of a decode loop and their rows: one row is one sample being drawn.

Shapes: n tokens of a prompt, L tokens of a row (its prompt, then what was drawn).
"""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from weaver.types import IntArray, SampledSequence, SampleRequest, SampleResult, SamplingParams, StopReason
from weaver_peft.call import LoraWeights
from weaver_peft.drawing import row_generator
from weaver_peft.prompt_logprobs import PromptLogprobs
from weaver_peft.stopping import StopRule


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. `weights` and `stop` are known once its first row is admitted."""

    request: SampleRequest
    future: Future[SampleResult]
    prompt: PromptLogprobs | None
    started: int = 0
    weights: LoraWeights | None = None
    stop: StopRule | None = None
    sequences: dict[int, SampledSequence] = field(default_factory=dict)

    @classmethod
    def of_request(cls, request: SampleRequest, future: Future[SampleResult]) -> "Job":
        wanted = request.prompt_logprobs or request.topk_prompt_logprobs > 0
        prompt = PromptLogprobs(request.prompt_n, request.topk_prompt_logprobs) if wanted else None
        return cls(request, future, prompt)

    @property
    def adapter_id(self) -> str:
        """The adapter's id; empty for the base model."""
        return self.request.adapter.adapter_id if self.request.adapter is not None else ""

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def start_row(self) -> "Row":
        """The next sample's row."""
        self.started += 1
        return Row(self, self.started - 1)

    def settle(self) -> None:
        """Hand the result over once every sample is there."""
        request = self.request
        if len(self.sequences) < request.num_samples or not self.future.set_running_or_notify_cancel():
            return
        sequences = tuple(self.sequences[index] for index in range(request.num_samples))
        prompt, topk = self.prompt, None
        if prompt is not None and request.topk_prompt_logprobs:
            topk = prompt.top_logprobs()
        self.future.set_result(
            SampleResult(sequences, prompt.logprobs_n if prompt is not None and request.prompt_logprobs else None, topk)
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
    def wants_prompt_logprobs(self) -> bool:
        """Whether this row's prefill is the one that must see every token of the prompt."""
        return self.job.prompt is not None and self.index == 0 and not self.drawn

    def append(self, token: int, logprob: float) -> None:
        self._tokens_L[self.length] = token
        self.drawn.append(token)
        self.logprobs.append(logprob)

    def stop_reason(self) -> StopReason | None:
        """Why the sequence is over; None while it is not."""
        if self.drawn and self.job.stop is not None and self.job.stop.ends(self.drawn):
            return StopReason.STOP
        return StopReason.LENGTH if len(self.drawn) >= self.params.max_tokens else None

    def finish(self, reason: StopReason) -> None:
        """Hand the sample to its job."""
        tokens, logprobs = np.array(self.drawn, np.int64), np.array(self.logprobs, np.float32)
        self.job.sequences[self.index] = SampledSequence(tokens, logprobs, reason)
        self.job.settle()


def shared_columns(row: Row, other: Row, cached: int) -> int:
    """How many of the columns that `row` needs are among the first `cached` of `other`."""
    if row.job.adapter_id != other.job.adapter_id:
        return 0
    limit = min(row.needed_columns, cached)
    if row.job is other.job and limit <= len(row.job.request.prompt_n):
        return limit
    differ = row.tokens_L[:limit] != other.tokens_L[:limit]
    return int(differ.argmax()) if differ.any() else limit
