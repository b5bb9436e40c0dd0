"""Adapter folders that others wrote, in PEFT's format: read exactly as they are, or refused by name.

What a folder sets and weaver does not compute is refused, so that training goes on with the very function the folder
describes. https://huggingface.co/docs/peft/developer_guides/checkpoint has the format.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from weaver.domain import Adapter, FloatArray, LoraSpec, ModelState
from weaver.errors import InvalidInput

SCHEME: Final = "file:"
CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX: Final = "base_model.model."
SIDES: Final = (".lora_A.weight", ".lora_B.weight")

_READ = {"peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules"}
# What says how an adapter came to be, or only matters beside a field that is refused.
_WITHOUT_EFFECT = {
    "auto_mapping", "peft_version", "revision", "inference_mode", "layers_pattern", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "runtime_config",
}  # fmt: skip
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),  # others change the base model's weights
}
_ATTENTION, _MLP = {"self_attn", "attn", "attention"}, {"mlp", "feed_forward", "ffn"}


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a folder says of its adapter. `base_model`: the name it was trained on, as its author wrote it."""

    lora: LoraSpec
    base_model: str


class ImportDirs:
    """The directories that an operator allows to import from; clients name folders below them as `file:/...`."""

    def __init__(self, dirs: tuple[Path, ...] = ()) -> None:
        self._dirs = dirs

    def folder(self, path: str) -> Path:
        """Where `file:/absolute/folder` lies. Raises InvalidInput for whatever is not below an allowed directory, by
        its name or behind links; the message does not tell whether it exists."""
        if not self._dirs:
            raise InvalidInput(f"path {path!r}: this server imports no folders; start it with --import-dir DIRECTORY")
        text = path.removeprefix(SCHEME)
        text = text[2:] if text.startswith("///") else text
        if not text.startswith("/") or text.startswith("//") or ".." in text.split("/") or "\0" in text:
            raise InvalidInput(f"path {path!r} must be file: and an absolute path without '..': file:/adapters/mine")
        folder = Path(os.path.realpath(text))
        if not self._allows(folder):
            raise InvalidInput(f"path {path!r} is not below a directory that --import-dir allows")
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not self._allows(Path(os.path.realpath(folder / file))):
                raise InvalidInput(f"path {path!r}: its {file} links out of the directories that --import-dir allows")
        return folder

    def read(self, path: str, base_model: str) -> ModelState:
        return ModelState(read_adapter(self.folder(path), base_model), None)

    def _allows(self, place: Path) -> bool:
        return any(place.is_relative_to(os.path.realpath(allowed)) for allowed in self._dirs)


def describe_adapter(folder: Path) -> AdapterFacts:
    """What training would start from, without reading weights. Raises InvalidInput naming what cannot be trained."""
    config = _read_config(folder)
    _refuse_what_is_not_computed(folder, config)
    rank, alpha = _number(folder, config, "r"), _number(folder, config, "lora_alpha")
    if rank < 1 or not rank.is_integer():
        raise InvalidInput(f"{_says(folder)} r={config['r']!r}; it must be a whole number of at least 1")
    shapes = _shapes(folder)
    modules = _modules(folder, shapes)
    for module in modules:
        _check_pair(folder, module, shapes, int(rank))
    _check_targets(folder, modules, config.get("target_modules"))
    kinds = {_kind(module) for module in modules}
    lora = LoraSpec(
        rank=int(rank),
        alpha=alpha,
        seed=0,  # nothing is drawn
        train_mlp="mlp" in kinds,
        train_attn="attn" in kinds,
        train_unembed="unembed" in kinds,
        only_modules=tuple(sorted({module.rpartition(".")[2] for module in modules})),
    )
    return AdapterFacts(lora, str(config.get("base_model_name_or_path") or ""))


def read_adapter(folder: Path, base_model: str) -> Adapter:
    """The adapter in `folder`, float32, for a base model of that name. Its tensors are all that the file has: beside
    LoRA's there may be the base model's own output layer, which PEFT writes along and a backend compares."""
    facts = describe_adapter(folder)
    try:
        found = deserialize((folder / WEIGHTS_FILE).read_bytes())
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"the adapter in {folder}: {WEIGHTS_FILE} cannot be read: {error}") from error
    tensors = {name: _tensor(folder, name, tensor) for name, tensor in found}
    return Adapter(base_model, facts.lora, facts.lora.only_modules, tensors)


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"the folder {folder} is no PEFT adapter: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the adapter in {folder}: {CONFIG_FILE} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"the adapter in {folder}: {CONFIG_FILE} holds no JSON object")
    return config


def _refuse_what_is_not_computed(folder: Path, config: Mapping[str, Any]) -> None:
    """Every field must be one that is read, one without effect, or say what is computed anyway."""
    if config.get("peft_type") != "LORA":
        raise InvalidInput(f"{_says(folder)} peft_type={config.get('peft_type')!r}; only 'LORA' can be trained")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidInput(f"{_says(folder)} task_type={config['task_type']!r}; only 'CAUSAL_LM' can be trained")
    for field in sorted(config.keys() - _READ - _WITHOUT_EFFECT):
        value = config[field]
        if value and value not in _NEUTRAL.get(field, ()):
            raise InvalidInput(f"{_says(folder)} {field}={value!r}{_what_to_do(field, config)}")


def _what_to_do(field: str, config: Mapping[str, Any]) -> str:
    match field:
        case "lora_dropout":
            return "; training here drops nothing out. Set it to 0 in a copy of the folder if that is what you want"
        case "use_rslora" if isinstance(config.get("lora_alpha"), int | float) and isinstance(config.get("r"), int):
            alpha = config["lora_alpha"] * config["r"] ** 0.5
            return f"; the same numbers without it: use_rslora=false and lora_alpha={alpha!r} in a copy of the folder"
    return ", which cannot be trained here"


def _number(folder: Path, config: Mapping[str, Any], field: str) -> float:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"{_says(folder)} {field}={value!r}; it must be a number")
    return float(value)


def _shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    if not (folder / WEIGHTS_FILE).exists() and (folder / PICKLE_FILE).exists():
        raise InvalidInput(
            f"the adapter in {folder} has its weights in {PICKLE_FILE}, which runs code when it is read; save it as "
            f"{WEIGHTS_FILE} (peft: save_pretrained(..., safe_serialization=True))"
        )
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"the adapter in {folder}: {WEIGHTS_FILE} cannot be read: {error}") from error


def _modules(folder: Path, names: Iterable[str]) -> list[str]:
    """The adapted modules. Refuses what else an adapter may hold: embeddings' factors, biases, magnitudes."""
    modules = set()
    for name in names:
        side = next((side for side in SIDES if name.endswith(side)), None)
        if side is not None and name.startswith(PREFIX):
            modules.add(name.removeprefix(PREFIX).removesuffix(side))
        elif side is not None or ".lora_" in name:
            raise InvalidInput(f"the adapter in {folder} has {name!r}, which cannot be trained here")
    if not modules:
        raise InvalidInput(f"the adapter in {folder} has no LoRA weights")
    return sorted(modules)


def _check_pair(folder: Path, module: str, shapes: Mapping[str, tuple[int, ...]], rank: int) -> None:
    names = [PREFIX + module + side for side in SIDES]
    for name in names:
        if name not in shapes:
            raise InvalidInput(f"the adapter in {folder} lacks {name!r}")
    a, b = (shapes[name] for name in names)
    if len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (rank, rank):
        raise InvalidInput(
            f"the adapter in {folder} has weights of shapes {list(a)} and {list(b)} for {module!r}, but sets r={rank}; "
            "all modules must be linear and have the same rank"
        )


def _check_targets(folder: Path, modules: Iterable[str], targets: object) -> None:
    """The file must hold what the config names: peft would begin anew whatever is missing."""
    if not isinstance(targets, list) or not all(isinstance(target, str) and target for target in targets):
        raise InvalidInput(f"{_says(folder)} target_modules={targets!r}; it must be a list of modules' names")
    named: set[str] = set()
    for module in modules:
        mine = {target for target in targets if module == target or module.endswith(f".{target}")}
        if not mine:
            raise InvalidInput(f"the adapter in {folder} has weights for {module!r}, which is not in target_modules")
        named |= mine
    if missing := sorted(set(targets) - named):
        raise InvalidInput(f"the adapter in {folder} has no weights for {missing[0]!r}, which is in target_modules")


def _kind(module: str) -> str:
    """What kind a module is by its name; one that is not of this kind for the base model is refused there."""
    parts = set(module.split("."))
    return "attn" if parts & _ATTENTION else "mlp" if parts & _MLP else "unembed"


def _tensor(folder: Path, name: str, tensor: Mapping[str, Any]) -> FloatArray:
    """float32; narrower types are widened, which changes no value."""
    match tensor["dtype"]:
        case "F32":
            values = np.frombuffer(tensor["data"], "<f4")
        case "F16":
            values = np.frombuffer(tensor["data"], "<f2").astype(np.float32)
        case "BF16":
            values = (np.frombuffer(tensor["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
        case other:
            raise InvalidInput(f"the adapter in {folder} has {name!r} as {other}; it must be F32, F16 or BF16")
    if not np.isfinite(values).all():
        raise InvalidInput(f"the adapter in {folder} has values in {name!r} that are not finite")
    array: FloatArray = values.reshape(tensor["shape"]).copy()
    return array


def _says(folder: Path) -> str:
    return f"the adapter in {folder} sets"
