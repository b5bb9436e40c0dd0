"""Distributions over the tokens that a sampler kept: the logits of all others become -inf, their probabilities 0.

Shapes: T tokens, C tokens of one chunk, V vocabulary entries (a rank's own where it is sharded), N kept ones of all T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weaver.backend import Pass
from weaver_peft.micro_batches import Item


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What each of T tokens' distribution is over: `tokens_N[starts[t]:starts[t + 1]]`, or all where that is empty."""

    starts: torch.Tensor
    tokens_N: torch.Tensor

    def of(self, tokens: torch.Tensor) -> "Kept":
        """Those of some of the tokens, in their order."""
        begins, counts = self.starts[tokens], self.starts[tokens + 1] - self.starts[tokens]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        places_N = torch.arange(int(starts[-1]), device=starts.device)
        return Kept(starts, self.tokens_N[places_N + (begins - starts[:-1]).repeat_interleave(counts)])

    def drop_others(self, logits_CV: torch.Tensor, first: int = 0) -> None:
        """In place, of as many tokens as these are of. Column 0 is the token id `first`; a kept token may have none."""
        counts_C = self.starts.diff()
        rows_N = torch.arange(len(counts_C), device=counts_C.device).repeat_interleave(counts_C)
        columns_N = self.tokens_N - first
        here = (columns_N >= 0) & (columns_N < logits_CV.shape[1])
        rows_N, columns_N = rows_N[here], columns_N[here]
        kept_N = logits_CV[rows_N, columns_N]
        logits_CV.index_fill_(0, counts_C.nonzero().squeeze(1), -torch.inf)
        logits_CV[rows_N, columns_N] = kept_N


def kept_tokens(passes: Sequence[Pass], items: Sequence[Item], device: torch.device) -> Kept | None:
    """Of the packed tokens of these data; None where none has a sampling mask."""
    masks = [passes[item.number].data[item.index].sampling_mask for item in items]
    if not any(mask is not None and len(mask.tokens_c) for mask in masks):
        return None
    pairs = list(zip(masks, items, strict=True))
    counts = [np.zeros(item.tokens, np.int64) if mask is None else np.diff(mask.starts) for mask, item in pairs]
    tokens = np.concatenate([mask.tokens_c for mask in masks if mask is not None])
    starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
    return Kept(torch.from_numpy(starts).to(device), torch.from_numpy(tokens).to(device))
