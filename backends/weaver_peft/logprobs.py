"""Per-token log probabilities without a [tokens, vocabulary] tensor that outlives a chunk, forward or backward.

The loss is arithmetic on logprobs, so its gradient with respect to them, g, is all the output layer needs to know:
d loss / d logits[t, v] = sum over k of g[t, k] · (1[v = target[t, k]] - p[t, v]).

Shapes: T tokens, C tokens of one chunk, V vocabulary, H hidden size, K targets per token, R the adapter's rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weaver_peft.call import LoraPair
from weaver_peft.products import product

CHUNK_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Elements of one chunk of logits: 64 MB of float32 on a CPU (measured best there: 32 and 128 MB are slower)."""


class Workspace:
    """Two chunks' worth of float32, [chunk_tokens, V] each, used again for every chunk.

    With each chunk in memory of its own the C library's heap grows to the size of all of them: small results between
    freed chunks keep their memory from being used again (measured: 1.3 GB for 8192 tokens on a vocabulary of 50,000).
    """

    def __init__(self, weight_VH: torch.Tensor) -> None:
        vocabulary, device = weight_VH.shape[0], weight_VH.device
        self.chunk_tokens = max(1, CHUNK_ELEMENTS[device.type] // vocabulary)
        self.computed = torch.empty(self.chunk_tokens, vocabulary, device=device)
        self.selected = torch.empty(self.chunk_tokens, vocabulary, device=device)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The frozen output layer, one adapter's pair on it where it has one, and where its logits are computed."""

    weight_VH: torch.Tensor
    pair: LoraPair | None
    workspace: Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Target logprobs, (T, K), and the whole distributions they are of, (T, V), when these fit in one chunk.

    The distributions lie in the workspace: they are good until it is used again.
    """

    logprobs_TK: torch.Tensor
    distributions_TV: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class HeadGradients:
    """The loss's gradients with respect to the hidden states and to the pair's A (R, H) and B (V, R)."""

    hidden_TH: torch.Tensor
    a: torch.Tensor | None
    b: torch.Tensor | None


def target_logprobs(head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor) -> Scored:
    """Log probabilities of the targets, float32. No graph is built. What fits in one chunk keeps its distributions."""
    logprobs_TK = torch.empty(targets_TK.shape, device=targets_TK.device)
    for rows in _chunks(head, len(hidden_TH)):
        distributions_CV = _distributions(head, hidden_TH[rows])
        torch.gather(distributions_CV, 1, targets_TK[rows], out=logprobs_TK[rows])
    return Scored(logprobs_TK, distributions_CV if len(hidden_TH) <= head.workspace.chunk_tokens else None)


def head_gradients(
    head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor, gradient_TK: torch.Tensor, scored: Scored
) -> HeadGradients:
    """Carry the loss's gradient with respect to the target logprobs back through the output layer.

    Distributions that were not kept are computed again chunk by chunk. Tokens whose gradient is zero (a masked prompt,
    say) are left out.
    """
    pair = head.pair
    a = torch.zeros_like(pair.a) if pair is not None else None
    b = torch.zeros_like(pair.b) if pair is not None else None
    found = HeadGradients(torch.zeros_like(hidden_TH), a, b)
    used = gradient_TK.ne(0).any(1).nonzero().squeeze(1)
    for rows in _chunks(head, len(used)):
        tokens = used[rows]
        if scored.distributions_TV is None:
            distributions_CV = _distributions(head, hidden_TH[tokens])
        else:
            selected_CV = head.workspace.selected[: len(tokens)]
            distributions_CV = torch.index_select(scored.distributions_TV, 0, tokens, out=selected_CV)
        logits_gradient_CV = _logits_gradient(distributions_CV, targets_TK[tokens], gradient_TK[tokens])
        _add_chunk(head, hidden_TH, tokens, logits_gradient_CV, found)
    return found


def _add_chunk(
    head: Head, hidden_TH: torch.Tensor, tokens: torch.Tensor, logits_gradient_CV: torch.Tensor, found: HeadGradients
) -> None:
    into_hidden_CH = product(logits_gradient_CV.to(hidden_TH.dtype), head.weight_VH.T).float()
    if head.pair is not None and found.a is not None and found.b is not None:
        hidden_CH = hidden_TH[tokens].float()
        lowered_CR = product(hidden_CH, head.pair.a) * head.pair.scale
        lowered_gradient_CR = product(logits_gradient_CV, head.pair.b.T) * head.pair.scale
        found.b.add_(product(lowered_CR.T, logits_gradient_CV.T).T)
        found.a.add_(product(lowered_gradient_CR.T, hidden_CH.T))
        into_hidden_CH.add_(product(lowered_gradient_CR, head.pair.a.T))
    found.hidden_TH[tokens] = into_hidden_CH.to(hidden_TH.dtype)


def _logits_gradient(
    distributions_CV: torch.Tensor, targets_CK: torch.Tensor, gradient_CK: torch.Tensor
) -> torch.Tensor:
    """d loss / d logits; overwrites the distributions."""
    negative_CV = distributions_CV.exp_().mul_(-gradient_CK.sum(1, keepdim=True))
    return negative_CV.scatter_add_(1, targets_CK, gradient_CK)


def _distributions(head: Head, hidden_CH: torch.Tensor) -> torch.Tensor:
    """Float32 log probabilities of every token, (C, V), the adapter's update included."""
    lowered_CR = None if head.pair is None else product(hidden_CH.float(), head.pair.a)
    logits_CV = product(hidden_CH, head.weight_VH).float()
    if head.pair is not None:
        logits_CV.addmm_(lowered_CR, head.pair.b.T, alpha=head.pair.scale)
    return torch.log_softmax(logits_CV, dim=1, out=head.workspace.computed[: len(hidden_CH)])


def _chunks(head: Head, tokens: int) -> Iterator[slice]:
    size = head.workspace.chunk_tokens
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))
