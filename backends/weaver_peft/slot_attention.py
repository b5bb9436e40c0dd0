"""Attention of the sampler's calls: one new token per cached sequence, or pieces of prompts being prefilled.

Shapes: T packed tokens of the call, R rows (sequences) of one pool, H and G query and key/value heads, D head size,
C columns of a slot, L columns attended to, n columns of one prompt; 2 is keys, then values; N layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from weaver_peft.kv_cache import KVCache, Pool
from weaver_peft.packing import PackedAttention


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The rows of one pool. `tokens_R` says which token of the call each slot's is; None: they are all, in order."""

    pool: Pool
    longest: int
    tokens_R: torch.Tensor | None
    columns_RG: torch.Tensor  # where each row's new column lies among the S·G·C of a layer, flattened
    mask_R11L: torch.Tensor | None  # added to the scores; None where all rows are equally long


class DecodeAttention:
    """Writes each token's key and value to the last column of its sequence, and attends to all of its columns."""

    def __init__(self, cache: KVCache, keys: Sequence[object]) -> None:
        """`keys` are all of the cache's sequences, in the order of the call's tokens."""
        token = {key: index for index, key in enumerate(keys)}
        pools = list(cache.pools())
        orders = [[token[key] for key in pool.keys] for pool in pools]
        self._in_order = len(pools) == 1 and orders[0] == list(range(len(keys)))
        self._groups = [_group(cache, pool, None if self._in_order else order) for pool, order in zip(pools, orders)]
        order_T = torch.tensor([index for order in orders for index in order])
        self._restore_T = torch.empty_like(order_T).scatter_(0, order_T, torch.arange(len(keys))).to(cache.shape.device)

    def __call__(
        self, layer: int, query_1HTD: torch.Tensor, key_1GTD: torch.Tensor, value_1GTD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        query_THD, key_TGD, value_TGD = (part[0].transpose(0, 1) for part in (query_1HTD, key_1GTD, value_1GTD))
        if self._in_order:
            return _attend(self._groups[0], layer, query_THD, key_TGD, value_TGD, scale).unsqueeze(0)
        outputs = [
            _attend(group, layer, query_THD[group.tokens_R], key_TGD[group.tokens_R], value_TGD[group.tokens_R], scale)
            for group in self._groups
        ]
        return torch.cat(outputs).index_select(0, self._restore_T).unsqueeze(0)


def _group(cache: KVCache, pool: Pool, tokens: list[int] | None) -> _Group:
    shape = cache.shape
    used = [cache.used(key) for key in pool.keys]
    used_R1 = torch.tensor(used)[:, None]
    slot_head_RG = torch.arange(len(used) * shape.heads).view(len(used), shape.heads)
    columns_RG = slot_head_RG * pool.columns + used_R1 - 1
    mask_R11L = None
    if min(used) != max(used):
        hidden_RL = torch.arange(max(used)) >= used_R1
        mask_R11L = torch.zeros(hidden_RL.shape, dtype=shape.dtype).masked_fill_(hidden_RL, -torch.inf)[:, None, None]
        mask_R11L = mask_R11L.to(shape.device)
    tokens_R = None if tokens is None else torch.tensor(tokens).to(shape.device)
    return _Group(pool, max(used), tokens_R, columns_RG.to(shape.device), mask_R11L)


def _attend(
    group: _Group,
    layer: int,
    query_RHD: torch.Tensor,
    key_RGD: torch.Tensor,
    value_RGD: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The outputs of the pool's rows, (R, H, D)."""
    keys_SGCD, values_SGCD = group.pool.layer(layer)
    rows, heads, size = key_RGD.shape
    columns = group.columns_RG.flatten()
    keys_SGCD.view(-1, size).index_copy_(0, columns, key_RGD.reshape(-1, size))
    values_SGCD.view(-1, size).index_copy_(0, columns, value_RGD.reshape(-1, size))
    # The query heads that share a key head stand where a longer query's tokens would: no key is repeated.
    output_RGQD = F.scaled_dot_product_attention(
        query_RHD.reshape(rows, heads, -1, size),
        keys_SGCD[:rows, :, : group.longest],
        values_SGCD[:rows, :, : group.longest],
        attn_mask=group.mask_R11L,
        scale=scale,
    )
    return output_RGQD.reshape(rows, -1, size)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tokens [start, stop) of a prompt, whose columns before `start` are there and whose others are to be written."""

    start: int
    stop: int
    columns_2NGnD: torch.Tensor


class PrefillAttention:
    """Attention of packed pieces, each to its own prompt; pieces that begin a prompt come first."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        lengths = [piece.stop for piece in pieces if piece.start == 0]
        self._beginnings = len(lengths)
        self._beginning_tokens = sum(lengths)
        device = pieces[0].columns_2NGnD.device
        self._packed = PackedAttention(lengths, device) if lengths else None
        self._masks = [_continuation_mask(piece) for piece in pieces[self._beginnings :]]

    def __call__(
        self, layer: int, query_1HTD: torch.Tensor, key_1GTD: torch.Tensor, value_1GTD: torch.Tensor, scale: float
    ) -> torch.Tensor:
        self._write(layer, key_1GTD[0], value_1GTD[0])
        outputs, token = [], self._beginning_tokens
        if self._packed is not None:
            query, key, value = (part[:, :, :token] for part in (query_1HTD, key_1GTD, value_1GTD))
            outputs.append(self._packed(layer, query, key, value, scale))
        for piece, mask_TL in zip(self._pieces[self._beginnings :], self._masks):
            stop = token + piece.stop - piece.start
            key, value = piece.columns_2NGnD[:, layer, None, :, : piece.stop]
            outputs.append(_attend_to_prompt(query_1HTD[:, :, token:stop], key, value, mask_TL, scale))
            token = stop
        return torch.cat(outputs, dim=1)

    def _write(self, layer: int, key_GTD: torch.Tensor, value_GTD: torch.Tensor) -> None:
        token = 0
        for piece in self._pieces:
            stop = token + piece.stop - piece.start
            piece.columns_2NGnD[0, layer, :, piece.start : piece.stop] = key_GTD[:, token:stop]
            piece.columns_2NGnD[1, layer, :, piece.start : piece.stop] = value_GTD[:, token:stop]
            token = stop


def _attend_to_prompt(
    query_1HTD: torch.Tensor, key_1GLD: torch.Tensor, value_1GLD: torch.Tensor, mask_TL: torch.Tensor, scale: float
) -> torch.Tensor:
    output_1HTD = F.scaled_dot_product_attention(
        query_1HTD, key_1GLD, value_1GLD, mask_TL, scale=scale, enable_gqa=query_1HTD.shape[1] != key_1GLD.shape[1]
    )
    return output_1HTD.transpose(1, 2)


def _continuation_mask(piece: Piece) -> torch.Tensor:
    """Token i of the piece sees the columns up to `start + i`."""
    columns = piece.columns_2NGnD
    mask_TL = torch.full((piece.stop - piece.start, piece.stop), -torch.inf, dtype=columns.dtype, device=columns.device)
    return mask_TL.triu_(piece.start + 1)
