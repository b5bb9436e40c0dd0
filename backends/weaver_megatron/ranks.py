"""This process among the others: its coordinates, and the groups it communicates in."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from weaver.errors import InvalidInput
from weaver_megatron.layout import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """Groups of this rank. Experts: `expert_tensor` ranks share one expert; `expert_tokens` ranks, of different data,
    hold different experts and bring their tokens together; `expert_replicas` hold the same part of the same experts.

    `control` carries small objects over gloo, whatever carries tensors.
    """

    layout: Layout
    device: torch.device
    tp_rank: int
    dp_rank: int
    world: dist.ProcessGroup
    tensor: dist.ProcessGroup
    data: dist.ProcessGroup
    expert_tensor: dist.ProcessGroup
    expert_tokens: dist.ProcessGroup
    expert_replicas: dist.ProcessGroup
    control: dist.ProcessGroup

    @property
    def tp(self) -> int:
        return self.layout.tp

    @property
    def dp(self) -> int:
        return self.layout.dp

    @property
    def expert_part(self) -> int:
        """Which of the `ep` parts of the experts this rank holds."""
        return self._number // self.layout.expert_tp % self.layout.ep

    @property
    def expert_tp_rank(self) -> int:
        return self.tp_rank % self.layout.expert_tp

    @property
    def holds_dense_first(self) -> bool:
        """Whether this rank speaks for the shards of dense layers it holds: no other copy is counted or saved."""
        return self.dp_rank == 0

    @property
    def holds_experts_first(self) -> bool:
        return self._number // (self.layout.expert_tp * self.layout.ep) == 0

    @property
    def data_together(self) -> range:
        """The data ranks whose tokens come together in mixture layers."""
        width = data_width(self.layout)
        first = self.dp_rank // width * width
        return range(first, first + width)

    @property
    def _number(self) -> int:
        return self.dp_rank * self.tp + self.tp_rank


def data_width(layout: Layout) -> int:
    """Over how many data ranks one set of experts is spread."""
    return max(1, layout.ep // layout.tp)


def join(layout: Layout, device: torch.device) -> Ranks:
    """Make the groups; every rank calls it, after torch.distributed is initialised with one process per rank."""
    world = dist.get_world_size()
    if world != layout.world:
        raise InvalidInput(f"tp {layout.tp} and dp {layout.dp} take {layout.world} processes; there are {world}")
    if not parallel_state.model_parallel_is_initialized():  # it is when this process holds another model already
        parallel_state.initialize_model_parallel(layout.tp, create_gloo_process_groups=False)
    rank, tp, etp = dist.get_rank(), layout.tp, layout.expert_tp
    width, experts = data_width(layout), layout.expert_tp * layout.ep
    return Ranks(
        layout=layout,
        device=device,
        tp_rank=rank % tp,
        dp_rank=rank // tp,
        world=dist.group.WORLD,
        tensor=_own(range(start, start + tp) for start in range(0, world, tp)),
        data=_own(range(start, world, tp) for start in range(tp)),
        expert_tensor=_own(range(start, start + etp) for start in range(0, world, etp)),
        expert_tokens=_own(
            range(start + shift, start + width * tp, tp) for start in range(0, world, width * tp) for shift in range(tp)
        ),
        expert_replicas=_own(range(start, world, experts) for start in range(min(experts, world))),
        control=dist.new_group(backend="gloo"),
    )


def _own(members: Iterable[range]) -> dist.ProcessGroup:
    """Of groups that together hold every rank once, this rank's; every rank makes all of them, in the same order."""
    mine = None
    for group in members:
        made = dist.new_group(list(group))
        if dist.get_rank() in group:
            mine = made
    assert mine is not None
    return mine
