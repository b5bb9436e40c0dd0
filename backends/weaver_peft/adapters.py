"""Reads adapters from folders in PEFT's format, and refuses by name what the forward pass would not compute."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from weaver.errors import CheckpointDamaged, InvalidInput
from weaver_peft.base_model import BaseModel
from weaver_peft.call import LoraPair, LoraWeights

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
# What says how an adapter came to be, or which tensors the file has (it shows them itself).
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
    "runtime_config",
}  # fmt: skip
# Beginnings that leave the base model's weights as they are; others (pissa, olora, corda ...) change them.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


def load_adapter(folder: Path, base: BaseModel) -> LoraWeights:
    """The adapter's pairs by module name, float32 on the base model's device.

    Raises CheckpointDamaged where files are missing or unreadable and InvalidInput where the adapter is not one that
    the backend computes on this model; both name the folder and what is wrong.
    """
    config = _read_config(folder)
    _refuse_what_is_not_computed(folder, config)
    tensors = _read_tensors(folder)
    matrices = {name: tensor for name, tensor in tensors.items() if ".lora_A." in name or ".lora_B." in name}
    refuse_other_base_weights(
        f"the adapter in {folder}", {name: tensors[name] for name in tensors.keys() - matrices.keys()}, base
    )
    names = sorted({name.rpartition(".lora_")[0] for name in matrices})
    if not names:
        raise InvalidInput(f"the adapter in {folder} has no LoRA weights")
    return {name.removeprefix(PREFIX): _pair(folder, name, matrices, config, base) for name in names}


def adapter_bytes(weights: LoraWeights) -> int:
    return sum(pair.a.nbytes + pair.b.nbytes for pair in weights.values())


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(f"the adapter in {folder} cannot be read: {CONFIG_NAME}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InvalidInput(f"the adapter in {folder} is not a LoRA adapter: its {CONFIG_NAME} does not say so")
    return config


def _read_tensors(folder: Path) -> Mapping[str, torch.Tensor]:
    try:
        tensors: Mapping[str, torch.Tensor] = load_file(folder / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointDamaged(f"the adapter in {folder} cannot be read: {WEIGHTS_NAME}: {error}") from error
    return tensors


def _refuse_what_is_not_computed(folder: Path, config: Mapping[str, Any]) -> None:
    """Every field must be one that is read here, one without effect on the forward pass, or at its default."""
    defaults = LoraConfig().to_dict()
    for field, value in config.items():
        if field == "init_lora_weights":
            known = value in _PLAIN_BEGINNINGS
        else:
            known = field in _READ or field in _WITHOUT_EFFECT or value == defaults.get(field) or not value
        if not known:
            raise InvalidInput(
                f"the adapter in {folder} sets {field}={value!r}, which the backend 'peft' does not compute"
            )


def refuse_other_base_weights(adapter: str, tensors: Mapping[str, torch.Tensor], base: BaseModel) -> None:
    """peft may write the base model's own embedding beside an adapter of the output layer; anything else is refused."""
    own = base.model.state_dict()
    for name, tensor in tensors.items():
        weight = own.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        if weight is None or weight.shape != tensor.shape or not torch.equal(weight.cpu(), tensor.to(weight.dtype)):
            raise InvalidInput(f"{adapter} has {name!r}, which is neither LoRA nor the base model's own weight")


def _pair(
    folder: Path, name: str, matrices: Mapping[str, torch.Tensor], config: Mapping[str, Any], base: BaseModel
) -> LoraPair:
    module = next((module for module in base.modules if PREFIX + module.name == name), None)
    if module is None:
        raise InvalidInput(f"the adapter in {folder} adapts {name!r}, which is no linear layer of {base.facts.name!r}")
    try:
        a, b = (matrices[f"{name}.lora_{side}.weight"] for side in "AB")
    except KeyError as missing:
        raise CheckpointDamaged(f"the adapter in {folder} lacks {missing}") from missing
    rank = _by_pattern(config.get("rank_pattern"), module.name, config["r"])
    expected = [rank, module.in_features], [module.out_features, rank]
    if (list(a.shape), list(b.shape)) != expected:
        raise InvalidInput(
            f"the adapter in {folder} has weights of shapes {list(a.shape)} and {list(b.shape)} for {module.name!r}; "
            f"rank {rank} on {base.facts.name!r} needs {expected[0]} and {expected[1]}"
        )
    alpha = _by_pattern(config.get("alpha_pattern"), module.name, config["lora_alpha"])
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    to = {"device": base.device, "dtype": torch.float32}
    return LoraPair(a.to(**to).contiguous(), b.to(**to).contiguous(), scale)


def _by_pattern(pattern: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """A setting that may differ between modules, found as peft finds it."""
    return (pattern or {}).get(get_pattern_key(list(pattern or {}), module), otherwise)
