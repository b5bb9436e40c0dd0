"""Adapter folders in PEFT's format, and the slots of the engine that they take."""

import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from vllm.lora.request import LoRARequest

from .errors import Damaged, Failed, Refused
from .opening import Opened

LARGEST_RANK: Final = 512
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
SIDES: Final = (".lora_A.weight", ".lora_B.weight")
_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
}  # fmt: skip
# What says how an adapter came to be, or which tensors the file has (it shows them itself).
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
    "runtime_config",
}  # fmt: skip
_PLAIN: Final = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


class LargerRank(Exception):
    """The engine must be opened anew, for this rank."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"an adapter has rank {rank}")
        self.rank = rank


@dataclass(slots=True, eq=False)
class Slot:
    """One adapter that the engine has. `version` counts for one that is changed in place, and is 0 for all others."""

    request: LoRARequest
    version: int = 0
    users: int = 0
    is_forgotten: bool = False


@dataclass(slots=True)
class Slots:
    """The adapters in the engine, least recently used first. One thread uses this."""

    opened: Opened
    _slots: "OrderedDict[str, Slot]" = field(default_factory=OrderedDict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def take(self, adapter: dict[str, Any]) -> Slot | None:
        """The slot of an immutable adapter, to be given back with `leave`; None while all are in use.

        Raises what is wrong with the adapter, or LargerRank; nothing has changed then.
        """
        return self._take(f"adapter {adapter['id']}", adapter["folder"])

    def take_inflight(self, model_id: str, version: int, folder: str) -> Slot | None:
        """The slot of weights that are changed in place, with this version in it or the newer one that it has."""
        slot = self._take(f"inflight {model_id}", folder, version)
        if slot is not None and slot.version < version:
            try:
                self._replace(slot, version, folder)
            except Exception:
                self.leave(slot)
                raise
        return slot

    def publish(self, model_id: str, version: int, folder: str) -> None:
        """Those who use the slot go on with the newer weights. Raises what is wrong with them."""
        slot = self._slots.get(f"inflight {model_id}")
        if slot is not None and slot.version < version:
            self._replace(slot, version, folder)

    def leave(self, slot: Slot) -> None:
        slot.users -= 1
        if slot.is_forgotten and not slot.users:
            self._remove(next(key for key, each in self._slots.items() if each is slot))

    def forget(self, adapter_id: str) -> None:
        """Free the slot once nobody uses it; the name and the number do not come again."""
        slot = self._slots.get(f"adapter {adapter_id}")
        if slot is None:
            return
        if slot.users:
            slot.is_forgotten = True
        else:
            self._remove(f"adapter {adapter_id}")

    def _take(self, key: str, folder: str, version: int = 0) -> Slot | None:
        slot = self._slots.get(key)
        if slot is None:
            check_adapter(Path(folder), self.opened)
            if not self._make_room():
                return None
            slot = self._slots[key] = self._load(folder, version)
        self._slots.move_to_end(key)
        slot.users, slot.is_forgotten = slot.users + 1, False
        return slot

    def _make_room(self) -> bool:
        while len(self._slots) >= self.opened.slots:
            idle = next((key for key, slot in self._slots.items() if not slot.users), None)
            if idle is None:
                return False
            self._remove(idle)
        return True

    def _load(self, folder: str, version: int) -> Slot:
        """Under a name and a number never used before: the prefix cache knows adapters by these. Before any request
        names it, for an adapter that vLLM cannot load while it computes ends it."""
        number = next(self._numbers)
        request = LoRARequest(f"weaver-{number}", number, folder)
        _added(self.opened, request)
        return Slot(request, version)

    def _replace(self, slot: Slot, version: int, folder: str) -> None:
        """In place, once: the requests' own LoRARequest does not say so, or it would be read from disk at each step."""
        check_adapter(Path(folder), self.opened)
        old = slot.request
        _added(self.opened, LoRARequest(old.lora_name, old.lora_int_id, folder, load_inplace=True))
        slot.version = version

    def _remove(self, key: str) -> None:
        slot = self._slots.pop(key)
        self.opened.engine.remove_lora(slot.request.lora_int_id)


def _added(opened: Opened, request: LoRARequest) -> None:
    try:
        added = opened.engine.add_lora(request)
    except Exception as error:
        raise Refused(f"the adapter in {request.lora_path}: vLLM does not load it: {error}") from error
    if not added:
        raise Failed(f"the adapter in {request.lora_path}: vLLM did not load it")


def check_adapter(folder: Path, opened: Opened) -> None:
    """Raises what is wrong with an adapter, naming its folder: what vLLM would leave out, or copy in part."""
    config = _config(folder)
    for name, value in config.items():
        if value and name not in _READ | _WITHOUT_EFFECT and value not in _PLAIN.get(name, ()):
            raise Refused(f"the adapter in {folder} sets {name}={value!r}, which the sampler 'vllm' does not compute")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) for rank in ranks):
        raise Refused(f"the adapter in {folder} sets ranks {ranks}; they must be whole numbers")
    rank = max(ranks)
    if rank > LARGEST_RANK:
        raise Refused(f"the adapter in {folder} has rank {rank}; the sampler 'vllm' takes at most {LARGEST_RANK}")
    shapes = _shapes(folder)
    for name in shapes:
        side = next((side for side in SIDES if name.endswith(side)), None)
        if side is None or not name.startswith(PREFIX):
            raise Refused(
                f"the adapter in {folder} has {name!r}, which is no LoRA weight of a linear layer; the sampler 'vllm' "
                "would leave it out. Save it without (peft: save_embedding_layers=False), or use another sampler"
            )
        _check_layer(folder, name, side, shapes, opened)
    if rank > opened.max_lora_rank:
        raise LargerRank(rank)


def _check_layer(folder: Path, name: str, side: str, shapes: dict[str, list[int]], opened: Opened) -> None:
    module = name.removeprefix(PREFIX).removesuffix(side)
    sizes = opened.layers.get(module)
    if sizes is None:
        raise Refused(f"the adapter in {folder} adapts {module!r}, which vLLM does not adapt in this model")
    a, b = (shapes.get(f"{PREFIX}{module}{each}") for each in SIDES)
    if a is None or b is None:
        raise Damaged(f"the adapter in {folder} lacks one of the two weights of {module!r}")
    fits = len(a) == len(b) == 2 and a[0] == b[1] and (not opened.is_whole or (a[1], b[0]) == sizes)
    if not fits:
        raise Refused(
            f"the adapter in {folder} has weights of shapes {a} and {b} for {module!r}, whose sizes are {list(sizes)}"
        )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"the adapter in {folder} cannot be read: {CONFIG}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise Refused(f"the adapter in {folder} is not a LoRA adapter: its {CONFIG} does not say so")
    return config


def _shapes(folder: Path) -> dict[str, list[int]]:
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Damaged(f"the adapter in {folder} cannot be read: {WEIGHTS}: {error}") from error
