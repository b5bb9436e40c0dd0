"""Causal attention over packed sequences: each attends to itself alone, nothing is padded but inside attention.

Shapes: T packed tokens, B sequences of one bucket, L that bucket's longest, H and G query and key/value heads, D head
size.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """Sequences of similar length, attended to in one call. Padding comes after each sequence, and attention is
    causal, so no real token ever sees it and no mask is needed."""

    gather_BL: torch.Tensor  # index of each padded place into the T tokens
    scatter: torch.Tensor  # index of each real place into the flattened B·L
    tokens: torch.Tensor  # the T-index each real place came from


class PackedAttention:
    """Attention for sequences of the given lengths, packed one after the other."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        grouped: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            grouped[length.bit_length()].append(index)
        self._single = len(lengths) == 1
        self._buckets = [
            _bucket([starts[i] for i in group], [lengths[i] for i in group], device) for group in grouped.values()
        ]
        order = torch.cat([bucket.tokens for bucket in self._buckets])
        self._restore = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))

    def __call__(
        self, layer: int, query_1HTD: torch.Tensor, key_1GTD: torch.Tensor, value_1GTD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if self._single:
            return causal_attention(query_1HTD, key_1GTD, value_1GTD, scale).transpose(1, 2)
        packed = query_1HTD[0], key_1GTD[0], value_1GTD[0]
        outputs = [_attend(bucket, *packed, scale) for bucket in self._buckets]
        return torch.cat(outputs).index_select(0, self._restore).unsqueeze(0)


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, H, L, D) queries on (B, G, L, D) keys and values, causal; query heads share key heads in groups."""
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def _bucket(starts: list[int], lengths: list[int], device: torch.device) -> _Bucket:
    longest = max(lengths)
    place_L = torch.arange(longest)
    start_B1, length_B1 = torch.tensor(starts)[:, None], torch.tensor(lengths)[:, None]
    real_BL = place_L < length_B1
    gather_BL = torch.where(real_BL, start_B1 + place_L, start_B1)
    scatter = real_BL.flatten().nonzero().squeeze(1)
    return _Bucket(gather_BL.to(device), scatter.to(device), gather_BL.flatten()[scatter].to(device))


def _attend(
    bucket: _Bucket, query_HTD: torch.Tensor, key_GTD: torch.Tensor, value_GTD: torch.Tensor, scale: float
) -> torch.Tensor:
    """The outputs of the bucket's real tokens, (tokens, H, D), in the bucket's order."""
    count, longest = bucket.gather_BL.shape
    index = bucket.gather_BL.flatten()

    def padded(packed_HTD: torch.Tensor) -> torch.Tensor:
        heads, _, size = packed_HTD.shape
        return packed_HTD.index_select(1, index).view(heads, count, longest, size).transpose(0, 1)

    output_BHLD = causal_attention(padded(query_HTD), padded(key_GTD), padded(value_GTD), scale)
    return output_BHLD.transpose(1, 2).flatten(0, 1).index_select(0, bucket.scatter)
