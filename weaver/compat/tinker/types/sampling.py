"""Asking for samples."""

from collections.abc import Sequence
from typing import Literal

from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.model_input import ModelInput
from weaver.compat.tinker.types.names import TensorDtype


class SamplingParams(Lenient):
    """How tokens are drawn. `stop`: text, several texts, or token ids; None stops at the model's own end, and an empty
    list only at `max_tokens`. `top_k` -1 and `top_p` 1 leave every token in play."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | Sequence[int] | None = None
    temperature: float = 1
    top_k: int = -1
    top_p: float = 1


class WireTensor(Strict):
    """A TensorData as requests in JSON carry it."""

    data: list[int] | list[float]
    dtype: TensorDtype
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class SampleRequest(Strict):
    """One prompt and how often and how it is continued; the clients write it themselves."""

    num_samples: int = 1
    prompt: ModelInput
    sampling_params: SamplingParams
    base_model: str | None = None
    model_path: str | None = None
    sampling_session_id: str | None = None
    seq_id: int | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: WireTensor | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"


class CreateSamplingSessionRequest(Strict):
    """A sampler of a base model or of a saved path."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"


class CreateSamplingSessionResponse(Lenient):
    """The sampler's id."""

    type: Literal["create_sampling_session"] = "create_sampling_session"
    sampling_session_id: str


class JoinSamplingSessionRequest(Strict):
    """A further client of a sampler asks for a number of its own."""

    sampling_session_id: str
    type: Literal["join_sampling_session"] = "join_sampling_session"


class JoinSamplingSessionResponse(Lenient):
    """The number that no other client of this sampler has."""

    type: Literal["join_sampling_session"] = "join_sampling_session"
    client_counter: int


class GetSamplerResponse(Lenient):
    """What a sampler samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = None
