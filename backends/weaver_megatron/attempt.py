"""What one try at some passes found on this rank, and how the ranks tell each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from weaver.errors import WeaverError
from weaver.evaluation import PassOutcome, ScoreGradients
from weaver_megatron.ranks import Ranks

Gradients = dict[str, torch.Tensor]


@dataclass(slots=True)
class Attempt:
    """Nothing of it counts until it is committed. `outcomes` and `failed` are kept by the first rank of each
    tensor-parallel group, which calls the losses; `batches` has what batch losses found, on every rank."""

    outcomes: list[PassOutcome]
    gradients: dict[str, Gradients] = field(default_factory=dict)
    failed: dict[int, WeaverError] = field(default_factory=dict)
    batches: dict[int, Sequence[ScoreGradients]] = field(default_factory=dict)

    def add_gradient(self, model_id: str, name: str, gradient: torch.Tensor) -> None:
        staged = self.gradients.setdefault(model_id, {})
        staged[name] = staged[name].add_(gradient) if name in staged else gradient

    def not_finite(self) -> set[str]:
        """The models whose gradients on this rank are not."""
        return {
            model_id
            for model_id, found in self.gradients.items()
            if not all(gradient.isfinite().all() for gradient in found.values())
        }


def exchange_failures(ranks: Ranks, attempt: Attempt) -> set[str]:
    """Every rank learns which passes failed and of which models some rank's gradient is not finite."""
    found: list[tuple[dict[int, WeaverError], set[str]] | None] = [None] * ranks.layout.world
    dist.all_gather_object(found, (attempt.failed, attempt.not_finite()), group=ranks.control)
    failed: dict[int, WeaverError] = {}
    broken: set[str] = set()
    for given in found:
        assert given is not None
        failed = {**given[0], **failed}
        broken |= given[1]
    attempt.failed = failed
    return broken


def gather_outcomes(ranks: Ranks, outcomes: Sequence[PassOutcome]) -> list[PassOutcome] | None:
    """All data's outcomes on rank 0, None on the others."""
    is_first = dist.get_rank() == 0
    if ranks.dp == 1:
        return list(outcomes) if is_first else None
    found: list[Sequence[PassOutcome] | None] = [None] * ranks.layout.world
    mine = list(outcomes) if ranks.tp_rank == 0 else []
    dist.gather_object(mine, found if is_first else None, group=ranks.control)
    if not is_first:
        return None
    given = [each for each in found if each]
    return [_merged([each[number] for each in given]) for number in range(len(outcomes))]


def _merged(parts: Sequence[PassOutcome]) -> PassOutcome:
    whole = PassOutcome(parts[0].size)
    for part in parts:
        whole.logprobs |= part.logprobs
        whole.entropies |= part.entropies
        whole.losses |= part.losses
        whole.outputs |= part.outputs
        for name, values in part.metrics.items():
            whole.metrics[name].extend(values)
    return whole
