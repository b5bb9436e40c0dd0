"""What ranks do together, with the gradients it has. Nothing is changed in place and every input may be strided:
megatron-core 0.16.1's own return a strided tensor as it was, without the sum.

Shapes: first dimension tokens, cut in equal parts over a group.
"""

from typing import Any

import torch
import torch.distributed as dist


def summed(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over the group; no graph."""
    if dist.get_world_size(group) == 1:
        return tensor
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, group=group)
    return result


def largest(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The maximum over the group; no graph."""
    if dist.get_world_size(group) == 1:
        return tensor
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=dist.ReduceOp.MAX, group=group)
    return result


def gathered(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The parts of all ranks one after the other; no graph."""
    size = dist.get_world_size(group)
    if size == 1:
        return tensor
    result = tensor.new_empty((size * len(tensor), *tensor.shape[1:]))
    dist.all_gather_into_tensor(result, tensor.detach().contiguous(), group=group)
    return result


def scattered(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's part of the sum over the group; no graph."""
    size = dist.get_world_size(group)
    if size == 1:
        return tensor
    result = tensor.new_empty((len(tensor) // size, *tensor.shape[1:]))
    dist.reduce_scatter_tensor(result, tensor.detach().contiguous(), group=group)
    return result


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return summed(gradient, ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        result = summed(tensor, group)
        return result if result is not tensor else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return gathered(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return scattered(gradient, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return scattered(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gathered(gradient, ctx.group), None


def sum_gradients(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The tensor, the same on all ranks, before each uses it for a part: gradients are summed over the group."""
    return tensor if dist.get_world_size(group) == 1 else _SumGradients.apply(tensor, group)


def sum_parts(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over the group, the same on all ranks from here on, so that each has the whole gradient already."""
    return tensor if dist.get_world_size(group) == 1 else _Sum.apply(tensor, group)


def gather_tokens(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All ranks' tokens, which each uses for a part: gradients are summed and go back to the tokens' rank."""
    return tensor if dist.get_world_size(group) == 1 else _Gather.apply(tensor, group)


def scatter_tokens(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's tokens of the sum over the group."""
    return tensor if dist.get_world_size(group) == 1 else _Scatter.apply(tensor, group)
