"""Turns logits into tokens and their logprobs.

A token is drawn by inverting the cumulative distribution at one uniform number of the row's own, so what a row draws
depends on its logits and its seed and on nothing else in the batch.

Shapes: R rows, V vocabulary, F those of the rows that drop part of the vocabulary, k draws or likeliest tokens.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from weaver.domain import SamplingParams

SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)  # below it float32 has no normal numbers; greedy in effect


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens of one row, best first; tokens that cannot be drawn are left out."""

    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token per row. A logprob is NaN where the row's logits are not finite. `left`, of the rows that were to tell
    it: the tokens a row's was drawn among, ascending; empty where none was left out."""

    tokens: list[int]
    logprobs: list[float]
    likeliest: list[Likeliest | None]
    left: Mapping[int, NDArray[np.int32]]


def row_generator(seed: int | None, index: int) -> np.random.Generator:
    """The uniform numbers of sample `index` of a request. Any integer is a seed; None draws fresh entropy."""
    return _generator(seed, index)


def alternatives_generator(seed: int | None) -> np.random.Generator:
    """The uniform numbers of a prompt's alternatives: a stream that belongs to no sample."""
    return _generator(seed, 2**32 - 1)


def _generator(seed: int | None, stream: int) -> np.random.Generator:
    entropy = None if seed is None else abs(seed)
    negative = seed is not None and seed < 0
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy, spawn_key=(stream, int(negative)))))


def draw_many(logprobs_RV: torch.Tensor, temperature: float, uniform_Rk: torch.Tensor) -> torch.Tensor:
    """Draw k tokens for each row, with replacement, at a temperature: (R, k) token ids."""
    if temperature == 0:
        return logprobs_RV.argmax(1, keepdim=True).expand(uniform_Rk.shape)
    scaled_RV = (logprobs_RV - logprobs_RV.amax(1, keepdim=True)).div_(max(temperature, SMALLEST_TEMPERATURE))
    return _invert(scaled_RV.exp_().cumsum(1, dtype=torch.float64), uniform_Rk)


def _invert(cumulative_RV: torch.Tensor, uniform_Rk: torch.Tensor) -> torch.Tensor:
    """The tokens (R, k) at which the cumulative distribution, not normalised, passes the uniform numbers."""
    token_Rk = torch.searchsorted(cumulative_RV, uniform_Rk * cumulative_RV[:, -1:], right=True)
    return token_Rk.clamp_(max=cumulative_RV.shape[1] - 1)


def draw(
    logits_RV: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    likeliest: Sequence[int],
    barred: Mapping[int, Collection[int]] = MappingProxyType({}),
    telling: Collection[int] = (),
) -> Drawn:
    """Draw a token for each row, from temperature, then top_k, then top_p, and tell that many of the `likeliest` tokens
    of what it was drawn from. Tokens that are `barred` from a row cannot come, and what is left is all there is; rows
    that are `telling` tell it. Consumes `logits_RV` (float32)."""
    device = logits_RV.device
    _bar(logits_RV, barred)
    temperatures = [max(each.temperature, SMALLEST_TEMPERATURE) if each.temperature else 1.0 for each in params]
    scaled_RV = logits_RV.sub_(logits_RV.amax(1, keepdim=True))
    if any(temperature != 1.0 for temperature in temperatures):
        scaled_RV.div_(torch.tensor(temperatures, device=device)[:, None])
    _drop_unlikely(scaled_RV, params)
    cumulative_RV = scaled_RV.exp().cumsum(1, dtype=torch.float64)
    uniform_R1 = torch.tensor(uniforms, dtype=torch.float64, device=device)[:, None]
    token_R1 = _invert(cumulative_RV, uniform_R1)
    greedy = [each.temperature == 0 for each in params]
    if any(greedy):
        greedy_R1 = torch.tensor(greedy, device=device)[:, None]
        token_R1 = torch.where(greedy_R1, scaled_RV.argmax(1, keepdim=True), token_R1)
    normalizer_R1 = cumulative_RV[:, -1:].log()
    logprob_R1 = scaled_RV.gather(1, token_R1) - normalizer_R1
    tops = [_likeliest(scaled_RV[row], normalizer_R1[row], k) if k else None for row, k in enumerate(likeliest)]
    left = {row: _left(scaled_RV[row], row in barred or _drops(params[row], scaled_RV.shape[1])) for row in telling}
    return Drawn(token_R1[:, 0].tolist(), logprob_R1[:, 0].tolist(), tops, left)


def _bar(logits_RV: torch.Tensor, barred: Mapping[int, Collection[int]]) -> None:
    if barred:
        rows = [row for row, tokens in barred.items() for _ in tokens]
        logits_RV[rows, [token for tokens in barred.values() for token in tokens]] = -torch.inf


def _left(scaled_V: torch.Tensor, dropped: bool) -> NDArray[np.int32]:
    """A model's own logits may be -inf; those of a row that nothing was dropped from are the whole vocabulary."""
    left = (scaled_V > -torch.inf).nonzero()[:, 0] if dropped else None
    if left is None or len(left) == len(scaled_V):
        return np.zeros(0, np.int32)
    found: NDArray[np.int32] = left.to("cpu", torch.int32).numpy()
    return found


def _likeliest(scaled_V: torch.Tensor, normalizer_1: torch.Tensor, k: int) -> Likeliest:
    top = scaled_V.topk(k)
    possible = top.values > -torch.inf
    return Likeliest(top.indices[possible].tolist(), (top.values[possible] - normalizer_1).tolist())


def _drop_unlikely(scaled_RV: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    """Set to -inf what top_k and top_p drop. Greedy rows drop nothing: their logprobs are the model's own."""
    rows = [row for row, each in enumerate(params) if _drops(each, scaled_RV.shape[1])]
    if not rows:
        return
    scaled_FV = scaled_RV[rows]
    sorted_FV = _sorted_down(scaled_FV)
    keep_F1 = _kept_count(sorted_FV, [params[row] for row in rows])
    least_F1 = sorted_FV.gather(1, keep_F1 - 1)
    above_FV = scaled_FV > least_F1
    # Of tokens that tie for the last places, those with the lower ids stay.
    level_FV = scaled_FV == least_F1
    level_FV &= level_FV.cumsum(1) <= keep_F1 - above_FV.sum(1, keepdim=True)
    scaled_RV[rows] = scaled_FV.masked_fill_(~(above_FV | level_FV), -torch.inf)


def _drops(params: SamplingParams, vocabulary: int) -> bool:
    return bool(params.temperature) and (0 < params.top_k < vocabulary or params.top_p < 1)


def _kept_count(sorted_FV: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """How many of the likeliest tokens stay, (F, 1): the smallest set that has the mass top_p, at least one token."""
    device, vocabulary = sorted_FV.device, sorted_FV.shape[1]
    top_k_F1 = torch.tensor(
        [each.top_k if 0 < each.top_k < vocabulary else vocabulary for each in params], device=device
    )
    top_k_F1 = top_k_F1[:, None]
    if all(each.top_p >= 1 for each in params):
        return top_k_F1
    top_p_F1 = torch.tensor([each.top_p for each in params], dtype=torch.float64, device=device)[:, None]
    mass_FV = sorted_FV.exp().cumsum(1, dtype=torch.float64)
    nucleus_F1 = (mass_FV < top_p_F1 * mass_FV.gather(1, top_k_F1 - 1)).sum(1, keepdim=True) + 1
    return torch.where(top_p_F1 < 1, nucleus_F1, top_k_F1)


def _sorted_down(scaled_FV: torch.Tensor) -> torch.Tensor:
    if scaled_FV.device.type == "cpu":  # numpy sorts float32 with vector instructions, some 30 times faster than torch
        return torch.from_numpy(np.sort(scaled_FV.numpy(), axis=1)).flip(1)
    return scaled_FV.sort(1, descending=True).values
