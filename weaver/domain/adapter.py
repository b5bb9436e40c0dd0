"""A trained adapter as a value: what trainers, samplers, checkpoints and the outside world hand to each other."""

from collections.abc import Mapping
from dataclasses import dataclass

from weaver.domain.data import FloatArray
from weaver.domain.operations import ADAMW, LoraSpec


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter with PEFT's names: `base_model.model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out,
    rank), float32. `target_modules` are the last parts of the adapted modules' names, as PEFT matches them."""

    base_model: str
    lora: LoraSpec
    target_modules: tuple[str, ...]
    tensors: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerState:
    """`step` counts applied steps. Tensors are named `<adapter tensor>.exp_avg` and `.exp_avg_sq` for AdamW,
    `.momentum_buffer` for Dimuon; before the first step there are none, and `kind` says nothing."""

    step: int
    tensors: Mapping[str, FloatArray]
    kind: str = ADAMW


@dataclass(frozen=True, slots=True, eq=False)
class ModelState:
    """All of a training model between operations. Accumulated gradients are not part of it."""

    adapter: Adapter
    optimizer: OptimizerState | None
