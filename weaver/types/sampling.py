"""What a client can ask of a sampler, and what it gets. n is the prompt's length, V the vocabulary."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weaver.types.data import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Order: temperature, then top_k, then top_p on what is left.

    `temperature` 0 is greedy. `top_k` -1 and `top_p` 1 keep everything. `stop_token_ids` None means the model's own end
    tokens, `()` means none; a stop token, or the token that completes a stop string, is part of what is returned.
    The same `seed` draws the same tokens whatever else runs; None draws fresh ones.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An immutable adapter in PEFT's folder format. The same id always means the same weights."""

    adapter_id: str
    folder: Path


@dataclass(frozen=True, slots=True, eq=False)
class SampleRequest:
    """Draw `num_samples` continuations of one prompt with the base model (`adapter` None) or an adapter."""

    prompt_n: IntArray
    num_samples: int
    params: SamplingParams
    adapter: AdapterRef | None = None
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0


class StopReason(StrEnum):
    LENGTH = "length"
    STOP = "stop"


@dataclass(frozen=True, slots=True, eq=False)
class SampledSequence:
    """`logprobs` are of the drawn tokens under the distribution they were drawn from (after temperature, top_k and
    top_p); at temperature 0 they are the model's own."""

    tokens: IntArray
    logprobs: FloatArray
    stop_reason: StopReason


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs:
    """The k likeliest tokens per prompt position, best first. Row 0 has no distribution: token 0, logprob NaN."""

    token_ids_nk: NDArray[np.int32]
    logprobs_nk: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SampleResult:
    """`prompt_logprobs_n` has length n; its first entry is NaN, for nothing predicts the first token. Unscaled."""

    sequences: tuple[SampledSequence, ...]
    prompt_logprobs_n: FloatArray | None = None
    topk_prompt_logprobs: TopLogprobs | None = None
