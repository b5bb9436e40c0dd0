"""From whole tensors, as checkpoints and PEFT have them, to the parts of ranks, and back.

A checkpoint knows nothing of ranks: what one layout saved, any other layout and any other backend loads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from weaver.domain import FloatArray
from weaver_megatron.ranks import Ranks
from weaver_megatron.sites import Cut


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of an adapter: its whole shape, how it is cut, and whether this rank speaks for the part it has."""

    shape: tuple[int, int]
    cut: Cut
    is_expert: bool
    is_here: bool
    speaks: bool


def speaks_for(ranks: Ranks, cut: Cut, is_expert: bool) -> bool:
    """Of all ranks that have the same numbers, exactly one says yes."""
    if is_expert:
        return ranks.holds_experts_first and (cut.dim is not None or ranks.expert_tp_rank == 0)
    return ranks.holds_dense_first and (cut.dim is not None or ranks.tp_rank == 0)


def cut_all(parts: Mapping[str, Part], whole: Mapping[str, FloatArray]) -> dict[str, torch.Tensor]:
    """What this rank holds of whole tensors."""
    return {name: part.cut.of(torch.from_numpy(whole[name])) for name, part in parts.items() if part.is_here}


def gather_all(ranks: Ranks, parts: Mapping[str, Part], here: Mapping[str, torch.Tensor]) -> dict[str, FloatArray]:
    """Whole tensors on rank 0, float32; none on the others. Every rank calls it."""
    mine = {
        name: part.cut.without_padding(here[name].detach()).float().cpu().numpy()
        for name, part in parts.items()
        if part.is_here and part.speaks
    }
    spans = {name: parts[name].cut.span for name in mine}
    found: list[tuple[dict[str, FloatArray], dict[str, tuple[int, int]]] | None] = [None] * ranks.layout.world
    dist.gather_object((mine, spans), found if dist.get_rank() == 0 else None, group=ranks.control)
    if dist.get_rank() != 0:
        return {}
    whole = {name: np.empty(part.shape, np.float32) for name, part in parts.items()}
    for given in found:
        assert given is not None
        for name, array in given[0].items():
            _place(whole[name], parts[name].cut.dim, given[1][name], array)
    return whole


def _place(whole: FloatArray, dim: int | None, span: tuple[int, int], array: FloatArray) -> None:
    match dim:
        case None:
            whole[:] = array
        case 0:
            whole[span[0] : span[1]] = array
        case _:
            whole[:, span[0] : span[1]] = array
