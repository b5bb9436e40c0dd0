"""Per-token log probabilities without a [tokens, vocabulary] tensor that outlives a chunk, forward or backward.

The loss is arithmetic on logprobs, so its gradient with respect to them, g, is all the output layer needs to know:
d loss / d logits[t, v] = sum over k of g[t, k] · (1[v = target[t, k]] - p[t, v]).

Shapes: T tokens, C tokens of one chunk, V vocabulary, H hidden size, K targets per token, R the adapter's rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from weaver_peft.call import LoraPair

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
"""Elements of one chunk of logits: 32 MB of float32 on a CPU, where a chunk should stay near the caches."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The frozen output layer, and one adapter's pair on it where it has one."""

    weight_VH: torch.Tensor
    pair: LoraPair | None


@dataclass(frozen=True, slots=True, eq=False)
class HeadGradients:
    """The loss's gradients with respect to the hidden states and to the pair's A (R, H) and B (V, R)."""

    hidden_TH: torch.Tensor
    a: torch.Tensor | None
    b: torch.Tensor | None


def target_logprobs(head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the targets, float32 (T, K). No graph is built."""
    parts = []
    for rows in _chunks(head, len(hidden_TH)):
        logits_CV = _logits(head, hidden_TH[rows])
        parts.append(logits_CV.gather(1, targets_TK[rows]) - logits_CV.logsumexp(1, keepdim=True))
    return torch.cat(parts)


def head_gradients(
    head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor, gradient_TK: torch.Tensor
) -> HeadGradients:
    """Carry the loss's gradient with respect to the target logprobs back through the output layer.

    Logits are computed again chunk by chunk; tokens whose gradient is zero (a masked prompt, say) are left out.
    """
    hidden_gradient_TH = torch.zeros_like(hidden_TH)
    pair = head.pair
    a = torch.zeros_like(pair.a) if pair is not None else None
    b = torch.zeros_like(pair.b) if pair is not None else None
    used = gradient_TK.ne(0).any(1).nonzero().squeeze(1)
    for rows in _chunks(head, len(used)):
        tokens = used[rows]
        hidden_CH = hidden_TH[tokens]
        logits_gradient_CV = _logits_gradient(head, hidden_CH, targets_TK[tokens], gradient_TK[tokens])
        into_hidden_CH = (logits_gradient_CV.to(hidden_CH.dtype) @ head.weight_VH).float()
        if pair is not None and a is not None and b is not None:
            hidden_CH = hidden_CH.float()
            lowered_CR = F.linear(hidden_CH, pair.a)
            lowered_gradient_CR = (logits_gradient_CV @ pair.b) * pair.scale
            b.addmm_(logits_gradient_CV.T, lowered_CR, alpha=pair.scale)
            a.addmm_(lowered_gradient_CR.T, hidden_CH)
            into_hidden_CH.addmm_(lowered_gradient_CR, pair.a)
        hidden_gradient_TH[tokens] = into_hidden_CH.to(hidden_TH.dtype)
    return HeadGradients(hidden_gradient_TH, a, b)


def _logits_gradient(
    head: Head, hidden_CH: torch.Tensor, targets_CK: torch.Tensor, gradient_CK: torch.Tensor
) -> torch.Tensor:
    logits_CV = _logits(head, hidden_CH)
    probabilities_CV = logits_CV.sub_(logits_CV.logsumexp(1, keepdim=True)).exp_()
    probabilities_CV.mul_(-gradient_CK.sum(1, keepdim=True))
    return probabilities_CV.scatter_add_(1, targets_CK, gradient_CK)


def _logits(head: Head, hidden_CH: torch.Tensor) -> torch.Tensor:
    """Float32 logits (C, V), the adapter's update included."""
    logits_CV = F.linear(hidden_CH, head.weight_VH).float()
    if head.pair is not None:
        lowered_CR = F.linear(hidden_CH.float(), head.pair.a)
        logits_CV.addmm_(lowered_CR, head.pair.b.T, alpha=head.pair.scale)
    return logits_CV


def _chunks(head: Head, tokens: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS[head.weight_VH.device.type] // head.weight_VH.shape[0])
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))
