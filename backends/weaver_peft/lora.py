"""LoRA on a shared base model: linear layers that add each segment's own update, and how adapters begin.

LoRA: Hu et al. 2021 (arXiv:2106.09685). peft gives names, files and the initial distribution; the forward over segments
of several adapters in one call is ours.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from weaver_peft.call import LoraPair, Segment, current_call, forward_call
from weaver_peft.products import frozen_linear, low_rank_update


class AdaptedLinear(nn.Linear):
    """A frozen linear layer that adds, to each segment of the current call, the update of that segment's adapter."""

    module_name: str

    @classmethod
    def around(cls, linear: nn.Linear, module_name: str) -> "AdaptedLinear":
        """The same layer, sharing `linear`'s parameters."""
        adapted = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        adapted.weight, adapted.bias = linear.weight, linear.bias
        adapted.module_name = module_name
        return adapted

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` and the result are (1, T, features)."""
        output = frozen_linear(input, self.weight, self.bias)
        return add_updates(output, input, self.module_name, current_call().segments)


def add_updates(output: torch.Tensor, input: torch.Tensor, name: str, segments: tuple[Segment, ...]) -> torch.Tensor:
    """`output` (1, T, out) plus scale · B·A applied to each segment of `input` (1, T, in), in the adapters' float32."""
    pairs = [segment.adapter.get(name) if segment.adapter is not None else None for segment in segments]
    if not any(pair is not None for pair in pairs):
        return output
    if len(pairs) == 1:
        return _updated(output[0], input[0], pairs[0]).unsqueeze(0)
    parts = [
        _updated(output[0, segment.start : segment.stop], input[0, segment.start : segment.stop], pair)
        for segment, pair in zip(segments, pairs)
    ]
    return torch.cat(parts).unsqueeze(0)


def _updated(output: torch.Tensor, input: torch.Tensor, pair: LoraPair | None) -> torch.Tensor:
    return output if pair is None else output + low_rank_update(input, pair).to(output.dtype)


def adapt_linears(model: nn.Module, names: list[str]) -> None:
    """Put an AdaptedLinear in the place of each named linear module."""
    for name in names:
        parent_name, _, attribute = name.rpartition(".")
        linear = model.get_submodule(name)
        setattr(model.get_submodule(parent_name), attribute, AdaptedLinear.around(linear, name))


def recompute_layers(layers: nn.ModuleList) -> None:
    """Let each decoder layer drop its activations in calls that ask for it.

    transformers' own switch is module state (and turns the KV cache off), which a sampler on another thread would see.
    """
    for layer in layers:
        layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., object]) -> Callable[..., object]:
    def run(hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
        call = current_call()
        if not (call.recompute and torch.is_grad_enabled()):
            return forward(hidden, *args, **kwargs)

        def again(hidden: torch.Tensor) -> object:
            with forward_call(call):
                return forward(hidden, *args, **kwargs)

        return checkpoint(again, hidden, use_reentrant=False)

    return run


def initial_pair(name: str, in_features: int, out_features: int, rank: int, seed: int, scale: float) -> LoraPair:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)), as peft draws it (Kaiming uniform with a = sqrt(5)); B = 0.

    The generator is seeded from the adapter's seed and the module's name alone, on the CPU, so the same module begins
    the same whatever else is adapted and wherever it is placed.
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    bound = 1.0 / math.sqrt(in_features)
    a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    return LoraPair(a, torch.zeros(out_features, rank), scale)
