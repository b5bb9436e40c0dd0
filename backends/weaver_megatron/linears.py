"""megatron-core's parallel linear layers with each token's own LoRA update added.

One (A, B) pair per Hugging Face module, though one layer here may compute several of them (q, k and v; gate and up).
What crosses ranks for an update is always its low-rank activation.

    layer     A                B                sequence parallel: tokens of A's input, of B's output
    column    whole            cut by outputs   this rank's, all
    row       cut by inputs    whole            all, this rank's

Shapes: T tokens, M modules of a layer, R the largest rank among the adapters of a call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch.nn import functional as F

from weaver_megatron.call import Segment, current_call
from weaver_megatron.collectives import gather_tokens, scatter_tokens, sum_gradients, sum_parts


class AdaptedColumn(ColumnParallelLinear):
    """Outputs are cut over ranks. `adapted` says which modules it computes and how many outputs each has here."""

    names: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    groups: int = 1

    def adapt(self, names: Sequence[str], widths: Sequence[int], groups: int) -> None:
        """Outputs lie in `groups` groups, in each a share of every module's: q q k v, q q k v."""
        self.names, self.widths, self.groups = tuple(names), tuple(widths), groups

    def forward(self, input_: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, bias = super().forward(input_, *args, **kwargs)
        call = current_call()
        if not is_adapted(call.segments, self.names):
            return output, bias
        lowered_TMR = lower(input_[:, 0], call.local_segments, self.names)
        if self.sequence_parallel:
            lowered_TMR = gather_tokens(lowered_TMR, self.tp_group)
        else:
            lowered_TMR = sum_gradients(lowered_TMR, self.tp_group)
        updates = [
            lift(lowered_TMR[:, place], call.segments, name, width)
            for place, (name, width) in enumerate(zip(self.names, self.widths))
        ]
        return output + interleaved(updates, self.groups)[:, None].to(output.dtype), bias


class AdaptedRow(RowParallelLinear):
    """Inputs are cut over ranks. It computes one module."""

    names: tuple[str, ...] = ()
    width: int = 0

    def adapt(self, name: str, width: int) -> None:
        self.names, self.width = (name,), width

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, bias = super().forward(input_)
        call = current_call()
        if not is_adapted(call.segments, self.names):
            return output, bias
        lowered_TMR = lower(input_[:, 0], call.segments, self.names)
        if self.sequence_parallel:
            lowered_TMR = scatter_tokens(lowered_TMR, self.tp_group)
        else:
            lowered_TMR = sum_parts(lowered_TMR, self.tp_group)
        update = lift(lowered_TMR[:, 0], call.local_segments, self.names[0], self.width)
        return output + update[:, None].to(output.dtype), bias


def is_adapted(segments: Sequence[Segment], names: Sequence[str]) -> bool:
    return any(one.pair(name) is not None for one in segments for name in names)


def lower(input_TI: torch.Tensor, segments: Sequence[Segment], names: Sequence[str]) -> torch.Tensor:
    """scale · A · input by each token's own A, (T, M, R), in the adapters' float32; zero where there is none."""
    pairs = [one.pair(name) for one in segments for name in names]
    rank = max(pair.a.shape[0] for pair in pairs if pair is not None)
    rows = [
        torch.stack([_lowered(input_TI[one.start : one.stop], one, name, rank) for name in names], dim=1)
        for one in segments
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def lift(lowered_TR: torch.Tensor, segments: Sequence[Segment], name: str, width: int) -> torch.Tensor:
    """B · lowered by each token's own B, (T, width)."""
    rows = []
    for one in segments:
        part_TR = lowered_TR[one.start : one.stop]
        pair = one.pair(name)
        if pair is not None:
            rows.append(F.linear(part_TR[:, : pair.b.shape[1]], pair.b))
        else:
            rows.append(part_TR.new_zeros(len(part_TR), width))
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def interleaved(parts: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
    """Outputs of several modules, (T, width) each, as the layer that computes them lays them out."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.view(len(part), groups, -1) for part in parts], dim=2).flatten(1)


def _lowered(input_TI: torch.Tensor, segment: Segment, name: str, rank: int) -> torch.Tensor:
    pair = segment.pair(name)
    if pair is None:
        return input_TI.new_zeros(len(input_TI), rank, dtype=torch.float32)
    lowered_TR = F.linear(input_TI.to(pair.a.dtype), pair.a) * pair.scale
    return lowered_TR if lowered_TR.shape[1] == rank else F.pad(lowered_TR, (0, rank - lowered_TR.shape[1]))
