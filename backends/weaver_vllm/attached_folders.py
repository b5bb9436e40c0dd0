"""Adapter folders in PEFT's format, as far as a server of vLLM's would not say by itself what it leaves out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from weaver.domain import AdapterRef
from weaver.errors import CheckpointDamaged, InvalidInput

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
SIDES: Final = (".lora_A.weight", ".lora_B.weight")
HEAD: Final = "lm_head"
_COMPUTED: Final = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"}
# What says how an adapter came to be, or which tensors the file has (it shows them itself).
_WITHOUT_EFFECT: Final = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
    "runtime_config",
}  # fmt: skip
_PLAIN: Final = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


def check_folder(adapter: AdapterRef, largest_rank: int, layers: Mapping[str, tuple[int, int]]) -> None:
    """Raises InvalidInput naming what vLLM would leave out, copy in part or refuse, and CheckpointDamaged for what
    cannot be read. `layers` are the model's linear ones: how many numbers go in, and how many come out."""
    folder = adapter.folder
    config = _config(adapter)
    for name, value in config.items():
        if value and name not in _COMPUTED | _WITHOUT_EFFECT and value not in _PLAIN.get(name, ()):
            raise InvalidInput(f"the adapter in {folder} sets {name}={value!r}, which vLLM does not compute")
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if rank > largest_rank:
        raise InvalidInput(
            f"the adapter in {folder} has rank {rank}; the vLLM servers were started for {largest_rank}: their "
            "operator may raise --max-lora-rank"
        )
    shapes = _shapes(adapter)
    for name in shapes:
        if not name.startswith(PREFIX) or not name.endswith(SIDES):
            raise InvalidInput(
                f"the adapter in {folder} has {name!r}, which is no LoRA weight of a linear layer, and vLLM would "
                "leave it out. Save it without (peft: save_embedding_layers=False)"
            )
        _check_layer(folder, name.removeprefix(PREFIX).removesuffix(SIDES[0]).removesuffix(SIDES[1]), shapes, layers)


def _check_layer(
    folder: Path, layer: str, shapes: Mapping[str, Sequence[int]], layers: Mapping[str, tuple[int, int]]
) -> None:
    sizes, found = layers.get(layer), [shapes.get(f"{PREFIX}{layer}{side}", ()) for side in SIDES]
    a, b = found
    if sizes is None:
        raise InvalidInput(f"the adapter in {folder} adapts {layer!r}, which is no linear layer of the model")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (a[1], b[0]) != sizes:
        raise InvalidInput(
            f"the adapter in {folder} has shapes {a} and {b} for {layer!r}, whose sizes are {list(sizes)}"
        )


class Zeros:
    """An adapter that changes nothing, in a folder that is there until it is closed."""

    def __init__(self, layers: Mapping[str, tuple[int, int]]) -> None:
        self._layers = layers
        self._folder: TemporaryDirectory[str] | None = None

    def adapter(self) -> AdapterRef:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="weaver-vllm-")
            self._write(Path(self._folder.name))
        return AdapterRef("of zeros", Path(self._folder.name))

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _write(self, folder: Path) -> None:
        layer, (wide, high) = next(iter(self._layers.items()))
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [layer.rpartition(".")[2]]}
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        shapes = zip(SIDES, ((1, wide), (high, 1)), strict=True)
        save_file({f"{PREFIX}{layer}{side}": np.zeros(shape, np.float32) for side, shape in shapes}, folder / WEIGHTS)


def adapts_output_layer(adapter: AdapterRef) -> bool:
    """Whether it changes the layer that logits come from."""
    return any(name.startswith(f"{PREFIX}{HEAD}.") for name in _shapes(adapter))


def _config(adapter: AdapterRef) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = json.loads((adapter.folder / CONFIG).read_text(encoding="utf-8"))
        is_lora = config["peft_type"] == "LORA" and config["r"] >= 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(adapter, CONFIG, error) from error
    if not is_lora:
        raise InvalidInput(f"the adapter in {adapter.folder} is not a LoRA adapter: its {CONFIG} does not say so")
    return config


def _shapes(adapter: AdapterRef) -> Mapping[str, Sequence[int]]:
    try:
        with safe_open(adapter.folder / WEIGHTS, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(adapter, WEIGHTS, error) from error


def _damaged(adapter: AdapterRef, file: str, error: Exception) -> CheckpointDamaged:
    where: Path = adapter.folder / file
    return CheckpointDamaged(f"the adapter {adapter.adapter_id} cannot be read: {where}: {error}")
