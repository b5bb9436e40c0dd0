"""What sampling answers: arrays, with the lists of Tinker's older versions made when they are asked for.

T tokens of a sequence, P tokens of the prompt, K tokens beside each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weaver.compat.tinker.types.names import StopReason
from weaver.compat.tinker.types.tensor_data import TensorData

TopkLists: TypeAlias = list[list[tuple[int, float]] | None]

# How an empty cell of TopkLogprobs is written: token 0 with this logprob.
MASK_LOGPROB = -99999.0


@dataclass(frozen=True, slots=True)
class TopkLogprobs:
    """The likeliest tokens at each position, best first: int32 and float32, both (positions, K)."""

    token_ids: NDArray[Any]
    logprobs: NDArray[Any]


@dataclass(frozen=True)
class PromptAltTokens:
    """Other tokens the prompt could have had: int64 and float32, both (P - 1, K)."""

    tokens: TensorData
    logprobs: TensorData


def topk_to_lists(topk: TopkLogprobs) -> TopkLists:
    """Pairs of token and logprob for each position without the empty cells at its end; None where nothing is known."""
    if topk.token_ids.size == 0:
        return []
    empty_TK = (topk.token_ids == 0) & (topk.logprobs == np.float32(MASK_LOGPROB))
    # The last cell that is not empty, counted from the front.
    kept_T = topk.token_ids.shape[1] - np.argmin(empty_TK[:, ::-1], axis=1)
    rows = zip(topk.token_ids.tolist(), topk.logprobs.tolist(), kept_T.tolist(), empty_TK[:, 0].tolist(), strict=True)
    return [None if empty else list(zip(ids[:kept], logprobs[:kept])) for ids, logprobs, kept, empty in rows]


@dataclass(frozen=True)
class SampledSequence:
    """One continuation. `sequence_id` names it in provenance spans; arrays are (T,)."""

    stop_reason: StopReason
    sequence_id: str
    tokens_np: NDArray[Any] | None = field(default=None, repr=False)
    logprobs_np: NDArray[Any] | None = field(default=None, repr=False)
    topk_logprobs_np: TopkLogprobs | None = field(default=None, repr=False)
    _tokens_list: list[int] | None = field(default=None, repr=False)
    _logprobs_list: list[float] | None = field(default=None, repr=False)
    _topk_logprobs_list: TopkLists | None = field(default=None, repr=False)

    @cached_property
    def tokens(self) -> list[int]:
        """The sampled token ids."""
        if self._tokens_list is not None:
            return self._tokens_list
        tokens: list[int] = [] if self.tokens_np is None else self.tokens_np.tolist()
        return tokens

    @cached_property
    def logprobs(self) -> list[float] | None:
        """The logprob of each sampled token; None when the server sent none."""
        if self._logprobs_list is not None or self.logprobs_np is None:
            return self._logprobs_list
        logprobs: list[float] = self.logprobs_np.tolist()
        return logprobs

    @cached_property
    def topk_logprobs(self) -> TopkLists | None:
        """The likeliest tokens beside each sampled one; None unless asked for."""
        if self._topk_logprobs_list is not None or self.topk_logprobs_np is None:
            return self._topk_logprobs_list
        return topk_to_lists(self.topk_logprobs_np)


@dataclass(frozen=True)
class SampleResponse:
    """All continuations of one prompt, and what was asked about the prompt itself; arrays are (P,)."""

    sequences: Sequence[SampledSequence]
    prompt_logprobs_np: NDArray[Any] | None = field(default=None, repr=False)
    topk_prompt_logprobs_np: TopkLogprobs | None = field(default=None, repr=False)
    target_prompt_logprobs: TensorData | None = None
    prompt_cache_hit_tokens: int = 0
    prompt_alt_tokens: PromptAltTokens | None = None
    _prompt_logprobs_list: list[float | None] | None = field(default=None, repr=False)
    _topk_prompt_logprobs_list: TopkLists | None = field(default=None, repr=False)

    @cached_property
    def prompt_logprobs(self) -> list[float | None] | None:
        """The logprob of each prompt token, None for those without one (the first); None unless asked for."""
        if self._prompt_logprobs_list is not None or self.prompt_logprobs_np is None:
            return self._prompt_logprobs_list
        known = (~np.isnan(self.prompt_logprobs_np)).tolist()
        return [logprob if is_known else None for logprob, is_known in zip(self.prompt_logprobs_np.tolist(), known)]

    @cached_property
    def topk_prompt_logprobs(self) -> TopkLists | None:
        """The likeliest tokens at each prompt position, None where nothing is known; None unless asked for."""
        if self._topk_prompt_logprobs_list is not None or self.topk_prompt_logprobs_np is None:
            return self._topk_prompt_logprobs_list
        return topk_to_lists(self.topk_prompt_logprobs_np)
