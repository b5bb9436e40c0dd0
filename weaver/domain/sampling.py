"""What a client can ask of a sampler, and what it gets.

Shapes: n the prompt's length, m = n - 1 its positions that something comes before, T drawn tokens, k likeliest tokens
or alternatives, c cells of a table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weaver.domain.data import FloatArray, IntArray, TokenRows


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Order: min_tokens, then temperature, then top_k, then top_p on what is left.

    `temperature` 0 is greedy. `top_k` -1 and `top_p` 1 keep everything. `stop_token_ids` None means the model's own end
    tokens, `()` means none; a stop token, or the token that completes a stop string, is part of what is returned.
    The same `seed` draws the same tokens whatever else runs; None draws fresh ones. None of the first `min_tokens` ends
    the sequence: stop tokens have no probability there, and a stop string counts where a later token completes it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An immutable adapter in PEFT's folder format. The same id always means the same weights."""

    adapter_id: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Inflight:
    """Makes a request follow the weights of a model while they are trained.

    It begins with its `adapter`, which is that `version` of them, or with a newer one; when a newer version is
    published it goes on with that from its next token, on the keys and values it has. Those are shared with other
    requests of the same `session_id` and with no others: a new session never meets any that older weights computed.
    """

    model_id: str
    version: int
    session_id: str


@dataclass(frozen=True, slots=True, eq=False)
class PromptTargets:
    """Tokens whose logprobs at the prompt's positions are asked for: a table of m rows, row i about position i + 1.

    Its cells in row order; those it does not list, and those that hold -1, ask for nothing. A dense table lists all.
    """

    shape: tuple[int, int]
    rows_c: IntArray
    columns_c: IntArray
    tokens_c: IntArray
    is_sparse: bool = False


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A token of sample `index`, told while that is drawn. `likeliest`: its row of `top_logprobs`, without gaps."""

    index: int
    token: int
    logprob: float
    likeliest: Sequence[tuple[int, float]] = ()


Listener = Callable[[DrawnToken], None]
"""Hears of tokens on the sampler's own thread: it must be quick and never raise."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleRequest:
    """Draw `num_samples` continuations of one prompt with the base model (`adapter` None) or an adapter.

    `prompt_logprobs_last_n` keeps `prompt_logprobs` and `topk_prompt_logprobs` to the last tokens of the prompt.
    Both are of softmax(logits / `prompt_temperature`).
    `prompt_alternatives` draws that many tokens at every position of the prompt but the first.

    With `sampling_mask` each sequence says which tokens each of its own was drawn among.

    A `listener` hears of every drawn token in its order, before the result is there, from a sampler that can tell; one
    that cannot tells nothing. The result is whole either way.
    """

    prompt_n: IntArray
    num_samples: int
    params: SamplingParams
    adapter: AdapterRef | None = None
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    prompt_temperature: float = 1.0
    prompt_targets: PromptTargets | None = None
    prompt_alternatives: int = 0
    topk_sample_logprobs: int = 0
    inflight: Inflight | None = None
    listener: Listener | None = None
    sampling_mask: bool = False


class StopReason(StrEnum):
    LENGTH = "length"
    STOP = "stop"


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs:
    """The k likeliest tokens per position, best first. A cell that holds nothing has the logprob NaN: in the rows of
    prompt tokens that were not scored, and where fewer than k tokens can come."""

    token_ids_nk: NDArray[np.int32]
    logprobs_nk: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SampledSequence:
    """`logprobs` are of the drawn tokens under the distribution they were drawn from (after min_tokens, temperature,
    top_k and top_p); at temperature 0 they are the model's own, of what min_tokens left. `top_logprobs` are of the same
    distributions, one row each.

    `sampling_mask` has a row for each token too: the tokens that this distribution was over, the drawn one among them,
    in ascending order; it is empty where min_tokens, top_k and top_p left the whole vocabulary, as they do at
    temperature 0 after the first min_tokens.
    """

    tokens: IntArray
    logprobs: FloatArray
    stop_reason: StopReason
    top_logprobs: TopLogprobs | None = None
    sampling_mask: TokenRows | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TargetLogprobs:
    """A logprob for each cell of the table asked for; 0 where a cell asked for nothing. Unscaled."""

    targets: PromptTargets
    logprobs_c: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class PromptAlternatives:
    """Tokens that could have stood in the prompt: row i has k draws, independent and with replacement, for position
    i + 1, at the request's temperature (0: the likeliest, k times). Their logprobs are the model's own, unscaled."""

    tokens_mk: IntArray
    logprobs_mk: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SampleResult:
    """`prompt_logprobs_n` has length n; NaN where nothing was asked, and for the first token, which nothing predicts.
    `cached_prompt_tokens`: how many of the prompt's tokens this request did not have to compute because
    their keys and values were there already, whatever the number of samples."""

    sequences: tuple[SampledSequence, ...]
    prompt_logprobs_n: FloatArray | None = None
    topk_prompt_logprobs: TopLogprobs | None = None
    target_logprobs: TargetLogprobs | None = None
    prompt_alternatives: PromptAlternatives | None = None
    cached_prompt_tokens: int = 0
