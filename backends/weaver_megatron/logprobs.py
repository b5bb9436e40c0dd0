"""Per-token log probabilities where each rank has a part of the vocabulary, chunk by chunk, forward and backward.

As in `weaver_peft.logprobs` the loss is arithmetic on logprobs, and its gradient with respect to them, g, is all the
output layer needs to know: d loss / d logits[t, v] = sum over k of g[t, k] · (1[v = target[t, k]] - p[t, v]); for
entropies H with a gradient h, - h[t] · p[t, v] · (log p[t, v] + H[t]) on top; all divided by the temperature. Of tokens
that a sampler dropped each rank sets its own part's logits to -inf, as those of padding.

Shapes: T tokens, C tokens of one chunk, V vocabulary entries of this rank, H hidden size, K targets, R adapter's rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional as F
from weaver_peft.logprobs import CHUNK_ELEMENTS, LossGradients
from weaver_peft.sampling_masks import Kept

from weaver_megatron.call import LocalPair
from weaver_megatron.collectives import largest, summed


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """This rank's rows of the output layer and of one adapter's pair on it. `first` is the token id of row 0; rows from
    `real` on are padding, which no token has. Logits are divided by the temperature."""

    weight_VH: torch.Tensor
    pair: LocalPair | None
    first: int
    real: int
    group: dist.ProcessGroup
    temperature: float = 1.0

    @property
    def chunk_tokens(self) -> int:
        return max(1, CHUNK_ELEMENTS[self.weight_VH.device.type] // len(self.weight_VH))


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Target logprobs (T, K), the logarithm of each token's sum of exponentials (T,) and, where they were asked for,
    the entropies (T,); the same on all ranks. And what the distributions are over, where that is not all."""

    logprobs_TK: torch.Tensor
    normaliser_T: torch.Tensor
    entropy_T: torch.Tensor | None = None
    kept: Kept | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HeadGradients:
    """The loss's gradients with respect to the hidden states, to A (R, H) and to this rank's B (V, R)."""

    hidden_TH: torch.Tensor
    a: torch.Tensor | None
    b: torch.Tensor | None


def target_logprobs(
    head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor, *, entropy: bool = False, kept: Kept | None = None
) -> Scored:
    """Log probabilities of the targets, float32, and entropies where asked. No graph is built."""
    logprobs_TK = torch.empty(targets_TK.shape, device=targets_TK.device)
    normaliser_T = torch.empty(len(targets_TK), device=targets_TK.device)
    entropy_T = torch.empty_like(normaliser_T) if entropy else None
    for rows in _chunks(head, len(hidden_TH)):
        kept_here = None if kept is None else kept.of(torch.arange(rows.start, rows.stop, device=hidden_TH.device))
        logits_CV = _logits(head, hidden_TH[rows], kept_here)
        highest_C = largest(logits_CV.amax(1), head.group)
        found_CK = _own_targets(head, logits_CV, targets_TK[rows])
        shifted_CV = logits_CV.sub_(highest_C[:, None])
        exponentials_CV = shifted_CV.exp_() if entropy_T is None else shifted_CV.exp()
        sums = summed(torch.cat([exponentials_CV.sum(1)[:, None], found_CK], dim=1), head.group)
        normaliser_T[rows] = highest_C + sums[:, 0].log()
        logprobs_TK[rows] = (sums[:, 1:] - highest_C[:, None]) - sums[:, :1].log()
        if entropy_T is not None:
            entropy_T[rows] = sums[:, 0].log() - _weighted_sum(head, shifted_CV, exponentials_CV, kept) / sums[:, 0]
    return Scored(logprobs_TK, normaliser_T, entropy_T, kept)


def head_gradients(
    head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor, gradient: LossGradients, scored: Scored
) -> HeadGradients:
    """Carry the loss's gradients back through the output layer.

    Tokens whose gradient is zero (a masked prompt, say) are left out.
    """
    pair = head.pair
    hidden_gradient_TH = torch.zeros(hidden_TH.shape, device=hidden_TH.device)
    a = torch.zeros_like(pair.a) if pair is not None else None
    b = torch.zeros_like(pair.b) if pair is not None else None
    used = gradient.used()
    for rows in _chunks(head, len(used)):
        tokens = used[rows]
        hidden = hidden_TH[tokens]
        logits_gradient_CV = _logits_gradient(head, hidden, targets_TK[tokens], gradient.of(tokens), scored, tokens)
        into_hidden_CH = (logits_gradient_CV.to(hidden_TH.dtype) @ head.weight_VH).float()
        if pair is not None and a is not None and b is not None:
            hidden_CH = hidden.float()
            lowered_gradient_CR = (logits_gradient_CV @ pair.b) * pair.scale
            b.addmm_(logits_gradient_CV.T, F.linear(hidden_CH, pair.a) * pair.scale)
            a.addmm_(lowered_gradient_CR.T, hidden_CH)
            into_hidden_CH.addmm_(lowered_gradient_CR, pair.a)
        hidden_gradient_TH[tokens] = into_hidden_CH
    hidden_gradient_TH = summed(hidden_gradient_TH, head.group).to(hidden_TH.dtype)
    return HeadGradients(hidden_gradient_TH, None if a is None else summed(a, head.group), b)


def _logits(head: Head, hidden_CH: torch.Tensor, kept: Kept | None) -> torch.Tensor:
    """Float32, the adapter's update included, at the temperature, -inf for padding and for what is not kept."""
    logits_CV = F.linear(hidden_CH, head.weight_VH).float()
    if head.pair is not None:
        lowered_CR = F.linear(hidden_CH.float(), head.pair.a)
        logits_CV.addmm_(lowered_CR, head.pair.b.T, alpha=head.pair.scale)
    if head.temperature != 1:
        logits_CV.div_(head.temperature)
    logits_CV[:, head.real :] = -torch.inf
    if kept is not None:
        kept.drop_others(logits_CV, head.first)
    return logits_CV


def _logits_gradient(
    head: Head,
    hidden_CH: torch.Tensor,
    targets_CK: torch.Tensor,
    gradient: LossGradients,
    scored: Scored,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Of the model's logits of the chunk's `tokens`."""
    kept = None if scored.kept is None else scored.kept.of(tokens)
    distributions_CV = _logits(head, hidden_CH, kept).sub_(scored.normaliser_T[tokens][:, None])
    total_C1 = gradient.logprobs_TK.sum(1, keepdim=True)
    if gradient.entropy_T is None or scored.entropy_T is None:
        negative_CV = distributions_CV.exp_().mul_(-total_C1)
    else:
        probabilities_CV = distributions_CV.exp()
        distributions_CV[:, head.real :] = 0  # -inf times a probability of 0 is no number
        if kept is not None:
            distributions_CV.masked_fill_(distributions_CV == -torch.inf, 0)
        by_entropy_CV = distributions_CV.add_(scored.entropy_T[tokens][:, None]).mul_(gradient.entropy_T[:, None])
        negative_CV = by_entropy_CV.add_(total_C1).mul_(probabilities_CV).neg_()
    rows_CK, mine_CK = _own_rows(head, targets_CK)
    gradient_CV = negative_CV.scatter_add_(1, rows_CK, gradient.logprobs_TK * mine_CK)
    return gradient_CV if head.temperature == 1 else gradient_CV.div_(head.temperature)


def _weighted_sum(
    head: Head, shifted_CV: torch.Tensor, exponentials_CV: torch.Tensor, kept: Kept | None
) -> torch.Tensor:
    """Σ x · exp(x) over all that is kept, (C,), the same on all ranks."""
    if kept is not None:
        shifted_CV.masked_fill_(shifted_CV == -torch.inf, 0)  # times 0 that is no number
    products_CV = exponentials_CV[:, : head.real].mul_(shifted_CV[:, : head.real])
    return summed(products_CV.sum(1), head.group)


def _own_targets(head: Head, logits_CV: torch.Tensor, targets_CK: torch.Tensor) -> torch.Tensor:
    """Logits of the targets that are here, zero for the others."""
    rows_CK, mine_CK = _own_rows(head, targets_CK)
    return logits_CV.gather(1, rows_CK).masked_fill(~mine_CK, 0)


def _own_rows(head: Head, targets_CK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows_CK = targets_CK - head.first
    mine_CK = (rows_CK >= 0) & (rows_CK < head.real)
    return rows_CK.masked_fill(~mine_CK, 0), mine_CK


def _chunks(head: Head, tokens: int) -> Iterator[slice]:
    size = head.chunk_tokens
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))
