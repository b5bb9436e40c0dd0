"""The seam between clients and what serves them. A transport raises the exceptions that users see."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from weaver.compat.tinker import types

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One of the wire's JSON endpoints, without its prefix: `/training_runs/{run}`, and what fills its braces.

    `body` None: there is none. A Call with the same `key` as an earlier one is that one's repeat.
    """

    method: str
    endpoint: str
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    key: str | None = None
    access_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Promise:
    """An operation has been accepted; `sequence_ids` are those that a sample will have."""

    request_id: str
    sequence_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What `forward` and `forward_backward` were called with."""

    data: Sequence[types.Datum]
    loss_fn: str
    loss_fn_config: Mapping[str, float | str]
    forward_only: bool


@dataclass(frozen=True, slots=True, eq=False)
class SampleAsk:
    """What `sample` was called with."""

    prompt: types.ModelInput
    num_samples: int
    sampling_params: types.SamplingParams
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: types.TensorData | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool = False


class Transport(Protocol):
    """`encode` is called on the caller's thread, when the method is; everything else on the background loop.

    `heartbeat_seconds`: how often the service wants to hear from a living session. `traces_losses`: whether the service
    evaluates traced losses itself. `numbers_clones`: whether it numbers the clients that join a sampling session.
    """

    heartbeat_seconds: float
    traces_losses: bool
    numbers_clones: bool

    @property
    def where(self) -> Json:
        """What another process needs to reach the same service, without credentials."""

    def began(self, future: "Future[Any]", *, is_sample: bool) -> None:
        """A client's method was called; a service in this process sees it through when the process ends."""

    async def open(self) -> None:
        """Make sure the service can be talked to; done once, before anything else."""

    async def call(self, call: Call) -> Json: ...

    def encode(self, asked: Pass) -> Any:
        """The pass as `submit_pass` wants it; later changes of the caller's arrays do not reach it."""

    async def submit_pass(self, model_id: str, seq_id: int, encoded: Any) -> Promise: ...

    async def submit(self, call: Call) -> Promise:
        """A JSON endpoint that is answered by a promise."""

    async def sample(self, sampling_session_id: str, seq_id: int, ask: SampleAsk) -> Promise: ...

    async def result(self, promise: Promise) -> Json: ...

    async def pass_result(self, promise: Promise) -> types.ForwardBackwardOutput: ...

    async def sample_result(self, promise: Promise) -> types.SampleResponse:
        """Raises RetryableException when the service has forgotten it, so that it may be asked for once more.

        Cancelling this stops the sample.
        """

    async def give_up(self, model_id: str, seq_ids: Sequence[int]) -> None:
        """These numbers will never be used."""

    async def tokenizer(self, base_model: str) -> str | None:
        """Where the tokenizer of a base model lies, where the service says."""

    async def close(self) -> None: ...
