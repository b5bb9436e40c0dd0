"""What ranks found out about one adapter's gradients, put together: sums over data, over tokens, and the norm."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist

from weaver_megatron.ranks import Ranks
from weaver_megatron.sharding import Part


def sum_gradients(ranks: Ranks, parts: Mapping[str, Part], gradients: Mapping[str, torch.Tensor]) -> None:
    """In place: every rank's gradients become those of all data and all tokens. Losses are sums, so gradients are too.

    One collective for each group, on all its tensors at once.
    """
    for is_expert, partial_group, data_group in (
        (False, ranks.tensor, ranks.data),
        (True, ranks.expert_tensor, ranks.expert_replicas),
    ):
        mine = {name: tensor for name, tensor in gradients.items() if parts[name].is_expert == is_expert}
        _sum_together([tensor for name, tensor in mine.items() if parts[name].cut.partial], partial_group)
        _sum_together(mine.values(), data_group)


def global_norm(ranks: Ranks, parts: Mapping[str, Part], gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The L2 norm of the whole adapter's gradient, each number counted once, the same on every rank."""
    counted = [tensor.double().square().sum() for name, tensor in gradients.items() if parts[name].speaks]
    total = torch.stack(counted).sum() if counted else torch.zeros((), dtype=torch.double, device=ranks.device)
    if ranks.layout.world > 1:
        dist.all_reduce(total, group=ranks.world)
    return total.sqrt()


def clip(gradients: Mapping[str, torch.Tensor], norm: torch.Tensor, largest: float) -> None:
    """In place, as torch's clip_grad_norm_ does it."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for tensor in gradients.values():
        tensor.mul_(factor.to(tensor.dtype))


def _sum_together(tensors: Iterable[torch.Tensor], group: dist.ProcessGroup) -> None:
    tensors = list(tensors)
    if not tensors or dist.get_world_size(group) == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
