"""Per-token log probabilities without a [tokens, vocabulary] tensor that outlives a chunk, forward or backward.

The loss is arithmetic on logprobs, so its gradient with respect to them, g, is all the output layer needs to know:
d loss / d logits[t, v] = sum over k of g[t, k] · (1[v = target[t, k]] - p[t, v]). Where it is arithmetic on entropies
H = -Σ p log p too, with a gradient h by them, - h[t] · p[t, v] · (log p[t, v] + H[t]) comes on top. At a temperature
these logits are the model's divided by it, and so the model's have this gradient divided by it. Logits of tokens that a
sampler dropped are -inf: their p is 0, and so is their gradient by the same formula.

Shapes: T tokens, C tokens of one chunk, V vocabulary, H hidden size, K targets per token, R the adapter's rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weaver_peft.call import LoraPair
from weaver_peft.products import product
from weaver_peft.sampling_masks import Kept

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
    """The frozen output layer, one adapter's pair on it where it has one, and where its logits are computed, which are
    divided by the temperature."""

    weight_VH: torch.Tensor
    pair: LoraPair | None
    workspace: Workspace
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Target logprobs, (T, K), and the whole distributions they are of, (T, V), when these fit in one chunk; their
    entropies, (T,), where they were asked for; what the distributions are over, where that is not all.

    The distributions lie in the workspace: they are good until it is used again.
    """

    logprobs_TK: torch.Tensor
    distributions_TV: torch.Tensor | None
    entropy_T: torch.Tensor | None = None
    kept: Kept | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LossGradients:
    """The loss's gradients by the target logprobs, (T, K), and by the entropies, (T,), where it has them."""

    logprobs_TK: torch.Tensor
    entropy_T: torch.Tensor | None = None

    @classmethod
    def zero(cls, logprobs_TK: torch.Tensor, entropy_T: torch.Tensor | None) -> "LossGradients":
        return cls(torch.zeros_like(logprobs_TK), None if entropy_T is None else torch.zeros_like(entropy_T))

    def put(self, rows: slice, logprobs: torch.Tensor | None, entropy_T: torch.Tensor | None) -> None:
        """One datum's; its logprobs may be (T,) or (T, K)."""
        if logprobs is not None:
            self.logprobs_TK[rows] = logprobs.reshape(rows.stop - rows.start, -1).to(self.logprobs_TK.device)
        if self.entropy_T is not None and entropy_T is not None:
            self.entropy_T[rows] = entropy_T.to(self.entropy_T.device)

    def used(self) -> torch.Tensor:
        """Which tokens have any."""
        used_T = self.logprobs_TK.ne(0).any(1)
        if self.entropy_T is not None:
            used_T |= self.entropy_T.ne(0)
        return used_T.nonzero().squeeze(1)

    def of(self, tokens: torch.Tensor) -> "LossGradients":
        return LossGradients(self.logprobs_TK[tokens], None if self.entropy_T is None else self.entropy_T[tokens])


@dataclass(frozen=True, slots=True, eq=False)
class HeadGradients:
    """The loss's gradients with respect to the hidden states and to the pair's A (R, H) and B (V, R)."""

    hidden_TH: torch.Tensor
    a: torch.Tensor | None
    b: torch.Tensor | None


def target_logprobs(
    head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor, *, entropy: bool = False, kept: Kept | None = None
) -> Scored:
    """Log probabilities of the targets, float32, and entropies where asked. No graph is built. What fits in one chunk
    keeps its distributions."""
    logprobs_TK = torch.empty(targets_TK.shape, device=targets_TK.device)
    entropy_T = torch.empty(len(targets_TK), device=targets_TK.device) if entropy else None
    for rows in _chunks(head, len(hidden_TH)):
        kept_here = None if kept is None else kept.of(torch.arange(rows.start, rows.stop, device=hidden_TH.device))
        distributions_CV = _distributions(head, hidden_TH[rows], kept_here)
        torch.gather(distributions_CV, 1, targets_TK[rows], out=logprobs_TK[rows])
        if entropy_T is not None:
            entropy_T[rows] = _entropy(head, distributions_CV, kept)
    kept_TV = distributions_CV if len(hidden_TH) <= head.workspace.chunk_tokens else None
    return Scored(logprobs_TK, kept_TV, entropy_T, kept)


def head_gradients(
    head: Head, hidden_TH: torch.Tensor, targets_TK: torch.Tensor, gradient: LossGradients, scored: Scored
) -> HeadGradients:
    """Carry the loss's gradients back through the output layer.

    Distributions that were not kept are computed again chunk by chunk. Tokens whose gradient is zero (a masked prompt,
    say) are left out.
    """
    pair, workspace = head.pair, head.workspace
    a = torch.zeros_like(pair.a) if pair is not None else None
    b = torch.zeros_like(pair.b) if pair is not None else None
    found = HeadGradients(torch.zeros_like(hidden_TH), a, b)
    used = gradient.used()
    for rows in _chunks(head, len(used)):
        tokens = used[rows]
        if scored.distributions_TV is None:
            kept_here = None if scored.kept is None else scored.kept.of(tokens)
            distributions_CV = _distributions(head, hidden_TH[tokens], kept_here)
            spare_CV = workspace.selected[: len(tokens)]
        else:
            selected_CV = workspace.selected[: len(tokens)]
            distributions_CV = torch.index_select(scored.distributions_TV, 0, tokens, out=selected_CV)
            spare_CV = workspace.computed[: len(tokens)]  # all are in this chunk
        logits_gradient_CV = _logits_gradient(
            distributions_CV, spare_CV, targets_TK[tokens], gradient.of(tokens), scored, tokens
        )
        if head.temperature != 1:
            logits_gradient_CV.div_(head.temperature)
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
    distributions_CV: torch.Tensor,
    spare_CV: torch.Tensor,
    targets_CK: torch.Tensor,
    gradient: LossGradients,
    scored: Scored,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """d loss / d logits of the chunk's `tokens`; overwrites the distributions, and what is spare where there are
    entropies."""
    total_C1 = gradient.logprobs_TK.sum(1, keepdim=True)
    if gradient.entropy_T is None or scored.entropy_T is None:
        negative_CV = distributions_CV.exp_().mul_(-total_C1)
    else:
        probabilities_CV = torch.exp(distributions_CV, out=spare_CV)
        if scored.kept is not None:
            distributions_CV.masked_fill_(distributions_CV == -torch.inf, 0)  # times 0 that is no number
        by_entropy_CV = distributions_CV.add_(scored.entropy_T[tokens][:, None]).mul_(gradient.entropy_T[:, None])
        negative_CV = by_entropy_CV.add_(total_C1).mul_(probabilities_CV).neg_()
    return negative_CV.scatter_add_(1, targets_CK, gradient.logprobs_TK)


def _entropy(head: Head, distributions_CV: torch.Tensor, kept: Kept | None) -> torch.Tensor:
    """(C,), of log probabilities, which stay as they are."""
    probabilities_CV = torch.exp(distributions_CV, out=head.workspace.selected[: len(distributions_CV)])
    terms_CV = probabilities_CV.mul_(distributions_CV)
    if kept is not None:
        terms_CV.masked_fill_(distributions_CV == -torch.inf, 0)  # 0 times -inf is no number
    return terms_CV.sum(1).neg_()


def _distributions(head: Head, hidden_CH: torch.Tensor, kept: Kept | None) -> torch.Tensor:
    """Float32 log probabilities of every token, (C, V), the adapter's update included, at the temperature, over what is
    kept."""
    lowered_CR = None if head.pair is None else product(hidden_CH.float(), head.pair.a)
    logits_CV = product(hidden_CH, head.weight_VH).float()
    if head.pair is not None:
        logits_CV.addmm_(lowered_CR, head.pair.b.T, alpha=head.pair.scale)
    if head.temperature != 1:
        logits_CV.div_(head.temperature)
    if kept is not None:
        kept.drop_others(logits_CV)
    return torch.log_softmax(logits_CV, dim=1, out=head.workspace.computed[: len(hidden_CH)])


def _chunks(head: Head, tokens: int) -> Iterator[slice]:
    size = head.workspace.chunk_tokens
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))
