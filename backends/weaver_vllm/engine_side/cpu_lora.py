"""PATCH, of vLLM's LoRA products on CPUs: one product for each adapter of a batch.

vLLM 0.32 gathers a copy of the padded weights for every token (some ten times slower), and looks rows without an
adapter up under the index -1, which is the last slot: they get the delta of whatever adapter lies there.

Shapes: T rows of a batch, I and O sizes of a layer, R the padded rank.
"""

from typing import Any, Final

import torch
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Groups = list[tuple[int, Any]]
"""By slot, the rows that use it: a slice where these are all."""
_NO_ADAPTER: Final = -1


def groups_of(slots_T: torch.Tensor) -> Groups:
    slots = [slot for slot in slots_T.unique().tolist() if slot != _NO_ADAPTER]
    if len(slots) == 1 and bool((slots_T == slots[0]).all()):
        return [(slots[0], slice(None))]
    return [(slot, (slots_T == slot).nonzero()[:, 0]) for slot in slots]


def shrink(x_TI: torch.Tensor, a_RI: torch.Tensor) -> torch.Tensor:
    return x_TI.float() @ a_RI.float().T


def expand(y_TO: torch.Tensor, rows: Any, found_TR: torch.Tensor, b_OR: torch.Tensor) -> None:
    """Add to some rows of `y`, in place."""
    y_TO[rows] += (found_TR.float() @ b_OR.float().T).to(y_TO.dtype)


def _update_metadata(self: Any, *arguments: Any, **named: Any) -> None:
    PunicaWrapperBase.update_metadata(self, *arguments, **named)
    self.weaver_tokens = groups_of(self.token_lora_indices)
    self.weaver_samples = groups_of(self.sampler_indices)


def _add_shrink(self: Any, y: Any, x: torch.Tensor, lora_a_stacked: Any, scale: float, **_: Any) -> None:
    x_TI = x.view(-1, x.shape[-1])
    for slot, rows in self.weaver_tokens:
        for part, a_S1RI in enumerate(lora_a_stacked):
            y[part].view(-1, y[part].shape[-1])[rows] += shrink(x_TI[rows], a_S1RI[slot, 0]) * scale


def _add_expand(
    self: Any, y: torch.Tensor, x: Any, lora_b_stacked: Any, output_slices: Any, offset_start: int = 0, **_: Any
) -> None:
    y_TO = y.view(-1, y.shape[-1])
    for slot, rows in self.weaver_tokens:
        offset = offset_start
        for part, (b_S1OR, size) in enumerate(zip(lora_b_stacked, output_slices, strict=True)):
            expand(y_TO[:, offset : offset + size], rows, x[part][rows], b_S1OR[slot, 0])
            offset += size


def _add_lora_embedding(self: Any, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **_: Any) -> None:
    y_TO = y.view(-1, y.shape[-1])
    for slot, rows in self.weaver_tokens:
        expand(y_TO, rows, x.view(-1, x.shape[-1])[rows], lora_b_stacked[slot, 0])


def _add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: Any,
    lora_b_stacked: Any,
    scale: float,
    output_slices: Any,
    **_: Any,
) -> None:
    x_TI, y_TO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for slot, rows in self.weaver_tokens:
        offset, mine_TI = 0, x_TI[rows]
        for a_S1RI, b_S1OR, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            found_TR = shrink(mine_TI, a_S1RI[slot, 0]) * scale
            expand(y_TO[:, offset : offset + size], rows, found_TR, b_S1OR[slot, 0])
            offset += size


def _add_lora_logits(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, **_: Any
) -> None:
    x_TI, y_TO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for slot, rows in self.weaver_samples:
        found_TR = shrink(x_TI[rows], lora_a_stacked[slot, 0]) * scale
        expand(y_TO, rows, found_TR, lora_b_stacked[slot, 0])


REPLACED: Final = {
    "update_metadata": _update_metadata,
    "add_shrink": _add_shrink,
    "add_expand": _add_expand,
    "add_lora_embedding": _add_lora_embedding,
    "add_lora_linear": _add_lora_linear,
    "add_lora_logits": _add_lora_logits,
}


def replace_products() -> None:
    """For the whole process, before it loads a model."""
    for name, function in REPLACED.items():
        setattr(PunicaWrapperCPU, name, function)
