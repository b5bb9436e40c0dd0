"""Checkpoint folders: written beside and renamed, with a manifest of sha256 sums, in PEFT's own format.

A folder holds `adapter_config.json` and `adapter_model.safetensors` (what `PeftModel.from_pretrained` reads),
`optimizer.safetensors` where the optimizer's state was saved, and `manifest.json`.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from weaver.domain import ADAMW, Adapter, LoraSpec, ModelState, OptimizerState
from weaver.encryption import SUFFIX, Seal
from weaver.errors import CheckpointDamaged, InvalidInput

ADAPTER, CONFIG, OPTIMIZER, MANIFEST = (
    "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "manifest.json",
)  # fmt: skip


def checkpoint_folder(data_dir: Path, model_id: str, kind: str, name: str) -> Path:
    """A free folder for a checkpoint: named after it, or, where an older one lies there, with a suffix of its own.

    Which folder a path means is written in the store. Model ids contain colons, which not every file system takes.
    """
    folder = data_dir / "checkpoints" / model_id.replace(":", "-") / kind / name
    return folder if not folder.exists() else folder.with_name(f"{name}~{uuid.uuid4().hex[:8]}")


def write_checkpoint(folder: Path, state: ModelState) -> int:
    """Write `state` as a complete new folder or not at all, never over another; returns its size in bytes."""
    return write_beside(folder, lambda beside: _write_files(beside, state))


def write_export(folder: Path, state: ModelState, seal: Seal | None) -> int:
    """Like `write_checkpoint`, but what others read and nothing else: PEFT's two files, encrypted by `seal`."""
    return write_beside(folder, lambda beside: _write_exported(beside, state, seal))


def write_beside(folder: Path, write: Callable[[Path], None]) -> int:
    """What `write` puts into an empty folder becomes `folder`, whole or not at all; returns its size in bytes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    beside.mkdir()
    try:
        write(beside)
        beside.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return sum(path.stat().st_size for path in folder.iterdir())


def read_checkpoint(folder: Path, *, optimizer: bool) -> ModelState:
    """The state in `folder`, checked against its manifest. Raises CheckpointDamaged naming what is wrong."""
    manifest = check_checkpoint(folder)
    adapter = Adapter(
        base_model=manifest["base_model"],
        lora=LoraSpec.of(manifest["lora"]),
        target_modules=tuple(manifest["target_modules"]),
        tensors=load_file(folder / ADAPTER),
    )
    if not optimizer:
        return ModelState(adapter, None)
    if manifest["optimizer_step"] is None:
        raise InvalidInput(f"the checkpoint {folder.name!r} holds no optimizer state; load its weights only")
    tensors = load_file(folder / OPTIMIZER)
    return ModelState(adapter, OptimizerState(manifest["optimizer_step"], tensors, manifest.get("optimizer") or ADAMW))


def check_checkpoint(folder: Path) -> Mapping[str, Any]:
    """The manifest of a folder whose files are what was written. Raises CheckpointDamaged naming what is wrong."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        expected = {MANIFEST: manifest.pop("checksum"), **manifest["sha256"]}
        found = {MANIFEST: _checksum(manifest)} | {name: _sha256(folder / name) for name in manifest["sha256"]}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointDamaged(
            f"the checkpoint {folder.name!r} cannot be read: {type(error).__name__}: {error}"
        ) from error
    for name, digest in expected.items():
        if found[name] != digest:
            raise CheckpointDamaged(f"the checkpoint {folder.name!r} is damaged: {name} is not what was written")
    return manifest


def delete_checkpoint(folder: Path) -> None:
    """Remove a folder: first out of its name in one step, then its files."""
    if folder.exists():
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):  # somebody else was first
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _write_exported(folder: Path, state: ModelState, seal: Seal | None) -> None:
    _write_adapter(folder, state.adapter)
    if seal is not None:
        for file in list(folder.iterdir()):
            file.with_name(file.name + SUFFIX).write_bytes(seal(file.read_bytes()))
            file.unlink()
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _write_adapter(folder: Path, adapter: Adapter) -> None:
    save_file(dict(adapter.tensors), folder / ADAPTER, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_peft_config(adapter), indent=2))


def _write_files(folder: Path, state: ModelState) -> None:
    _write_adapter(folder, state.adapter)
    if state.optimizer is not None:
        save_file(dict(state.optimizer.tensors), folder / OPTIMIZER, metadata={"format": "pt"})
    manifest = {
        "format": 1,
        "base_model": state.adapter.base_model,
        "lora": asdict(state.adapter.lora),
        "target_modules": list(state.adapter.target_modules),
        "optimizer_step": None if state.optimizer is None else state.optimizer.step,
        "optimizer": state.optimizer.kind if state.optimizer is not None and state.optimizer.step else None,
        "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest | {"checksum": _checksum(manifest)}, indent=2))
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _peft_config(adapter: Adapter) -> Mapping[str, Any]:
    """`adapter_config.json` as peft 0.21 reads it. https://huggingface.co/docs/peft/package_reference/lora"""
    alpha = adapter.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "r": adapter.lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": list(adapter.target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of the manifest without its checksum: what it says of shapes and steps is as much of the state as the tensors."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
