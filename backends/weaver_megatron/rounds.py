"""Who computes what: micro-batches dealt out to data-parallel ranks, and the call each makes of its own.

Every rank gets the same passes and deals them the same way, so nothing needs to be sent.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from weaver_peft.micro_batches import Item, micro_batches, packed_tokens, runs
from weaver_peft.packing import PackedAttention

from weaver.backend import Pass
from weaver_megatron.adapter import TrainingModel
from weaver_megatron.call import Call, Segment, within
from weaver_megatron.model import ParallelModel
from weaver_megatron.ranks import Ranks

MicroBatch = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One micro-batch, or none, for each data-parallel rank; all with a backward pass or all without."""

    batches: tuple[MicroBatch, ...]
    backward: bool


def deal(passes: Sequence[Pass], budget: int, dp: int, leaving_out: Collection[int] = ()) -> Iterator[Round]:
    """Every datum once. Micro-batches are small enough for all data-parallel ranks to get some."""
    for backward in (False, True):
        others = {n for n, one in enumerate(passes) if one.backward != backward} | set(leaving_out)
        tokens = sum(len(datum.tokens_T) for n, one in enumerate(passes) if n not in others for datum in one.data)
        batches = list(micro_batches(passes, max(1, min(budget, -(-tokens // dp))), others))
        for start in range(0, len(batches), dp):
            here = batches[start : start + dp]
            yield Round((*here, *[()] * (dp - len(here))), backward)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """This rank's tokens and call, and the adapters whose parts here may get a gradient from it."""

    tokens_T: torch.Tensor
    call: Call
    model_ids: tuple[str, ...]


def prepare(
    model: ParallelModel, models: Mapping[str, TrainingModel], passes: Sequence[Pass], one: Round, recompute_above: int
) -> Prepared | None:
    """None where this rank has nothing to do; where mixture layers need its hands, it brings one token of nobody's."""
    ranks = model.ranks
    mine = one.batches[ranks.dp_rank]
    together = [one.batches[number] for number in ranks.data_together]
    if not mine and len(together) == 1:
        return None
    length = max(_padded(batch, ranks) for batch in together)
    segments = _segments(mine, models, _padded(mine, ranks))
    tokens_T, call = _call(model, passes, mine, segments, recompute_above < length)
    mixture = segments
    if len(together) > 1:
        mixture = []
        for place, batch in enumerate(together):
            shift = place * length
            mixture += [
                Segment(each.start + shift, each.stop + shift, each.weights)
                for each in _segments(batch, models, length)
            ]
    model_ids = tuple(dict.fromkeys(item.model_id for batch in together for item in batch))
    return Prepared(tokens_T, Call(mixture_segments=mixture, mixture_tokens=length, **call), model_ids)


def _call(
    model: ParallelModel, passes: Sequence[Pass], mine: MicroBatch, segments: Sequence[Segment], recompute: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    ranks = model.ranks
    lengths, total = [item.tokens for item in mine], segments[-1].stop
    padding = total - sum(lengths)
    pad = torch.zeros(padding, dtype=torch.long)
    if mine:
        tokens_T, positions_T = (torch.cat([part, pad]) for part in packed_tokens(passes, mine))
    else:
        tokens_T, positions_T = pad, pad
    cosine_T1D, sine_T1D = model.positions(positions_T.to(ranks.device))
    local = total // ranks.tp if ranks.layout.sequence_parallel else total
    start = ranks.tp_rank * local if ranks.layout.sequence_parallel else 0
    return tokens_T.to(ranks.device), {
        "segments": segments,
        "local_segments": within(segments, start, start + local),
        "attention": PackedAttention(lengths + [padding] * (padding > 0), ranks.device),
        "cosine_T1D": cosine_T1D,
        "sine_T1D": sine_T1D,
        "anchor": torch.zeros((), dtype=model.architecture.dtype, device=ranks.device, requires_grad=True),
        "recompute": recompute,
    }


def _segments(batch: MicroBatch, models: Mapping[str, TrainingModel], length: int) -> list[Segment]:
    """One for each run, and one of nobody's for the padding up to `length`."""
    found = [Segment(run.start, run.stop, models[run.model_id].pairs) for run in runs(batch)]
    stop = found[-1].stop if found else 0
    return found if stop == length else [*found, Segment(stop, length, None)]


def _padded(batch: MicroBatch, ranks: Ranks) -> int:
    tokens = max(1, sum(item.tokens for item in batch))
    return -(-tokens // ranks.tp) * ranks.tp if ranks.layout.sequence_parallel else tokens
