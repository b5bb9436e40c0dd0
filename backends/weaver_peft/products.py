"""Matrix products by the faster of the two libraries that torch brings for CPUs.

torch sends float32 products to MKL, which is slow on processors that are not Intel's: measured on an AMD EPYC with
torch 2.13, oneDNN takes 0.43 to 0.55 of MKL's time from 8 rows on, forward and backward, and as much for a single row
of a large weight. Results differ by rounding alone. On every other device and dtype torch decides.

Shapes: T rows, I and O features in and out, R a LoRA's rank; `*` any leading dimensions.
"""

from typing import Any

import torch
from torch.nn import functional as F

from weaver_peft.call import LoraPair

FEW_ROWS = 4  # below it a small layer's product is bound by memory, and MKL's call is the shorter one
LARGE_WEIGHT = 1 << 23


def product(input: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """What F.linear computes, input · weightᵀ + bias, without a graph."""
    if not _onednn_is_faster(input, weight_OI):
        return F.linear(input, weight_OI, bias_O)
    output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight_OI, bias_O, "none", [], "")
    return output


def frozen_linear(input: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """What F.linear computes, with gradients for `input` alone."""
    if torch.is_grad_enabled() and input.requires_grad:
        output: torch.Tensor = _FrozenLinear.apply(input, weight_OI, bias_O)
        return output
    return product(input, weight_OI, bias_O)


def low_rank_update(input: torch.Tensor, pair: LoraPair) -> torch.Tensor:
    """scale · B · A · input in the pair's float32, with gradients for `input`, A and B."""
    if torch.is_grad_enabled() and (input.requires_grad or pair.a.requires_grad):
        output: torch.Tensor = _LowRankUpdate.apply(input, pair.a, pair.b, pair.scale)
        return output
    return product(product(input.to(pair.a.dtype), pair.a) * pair.scale, pair.b)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        ctx.weight_OI = weight_OI
        return product(input, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return product(gradient, ctx.weight_OI.T), None, None


class _LowRankUpdate(torch.autograd.Function):
    """Written out because torch would transpose the products of the weights' gradients the slower way."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
        lowered = product(input.to(a_RI.dtype), a_RI) * scale
        ctx.save_for_backward(input, lowered, a_RI, b_OR)
        ctx.scale = scale
        return product(lowered, b_OR)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, None]:
        input, lowered, a_RI, b_OR = ctx.saved_tensors
        into_lowered = product(gradient, b_OR.T) * ctx.scale
        into_input = product(into_lowered, a_RI.T).to(input.dtype) if ctx.needs_input_grad[0] else None
        input_TI = input.to(a_RI.dtype).flatten(0, -2)
        a_gradient_RI = product(into_lowered.flatten(0, -2).T, input_TI.T)
        b_gradient_OR = product(lowered.flatten(0, -2).T, gradient.flatten(0, -2).T).T
        return into_input, a_gradient_RI, b_gradient_OR, None


def _onednn_is_faster(input: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    rows = input.numel() // max(1, input.shape[-1])
    return (
        weight_OI.device.type == "cpu"
        and weight_OI.dtype == input.dtype == torch.float32
        and (rows >= FEW_ROWS or weight_OI.numel() >= LARGE_WEIGHT)
        and rows > 0
        and _HAS_ONEDNN
    )


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
