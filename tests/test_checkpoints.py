"""Checkpoint folders: complete or not there, and never taken for what they are not."""

import json
import os
import time

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.checkpoints import check_checkpoint, checkpoint_folder, delete_checkpoint, read_checkpoint, write_checkpoint
from weaver.domain import (
    Adapter,
    CreateModel,
    LoadState,
    LoraSpec,
    ModelState,
    OptimizerState,
    SaveForSampler,
    SaveState,
)
from weaver.engine.executor import Executor
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import AlreadyExists, CheckpointDamaged, InvalidInput, UnknownName
from weaver.kept import KeptFolders
from weaver.plugins.echo import EchoBackend
from weaver.registry import load_registry
from weaver.store import Store

SPEC = LoraSpec(rank=3, alpha=32.0, seed=5, train_unembed=False)
FILES = {"adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "manifest.json"}


def state(optimizer=True, value=1.0):
    tensors = {"base_model.model.layer.lora_A.weight": np.full((3, 4), value, np.float32)}
    moments = {f"{name}.{part}": tensor / 2 for name, tensor in tensors.items() for part in ("exp_avg", "exp_avg_sq")}
    adapter = Adapter("some/model", SPEC, ("layer",), tensors)
    return ModelState(adapter, OptimizerState(7, moments) if optimizer else None)


@pytest.fixture
def folder(tmp_path):
    written = checkpoint_folder(tmp_path, "s:train:0", "weights", "first")
    write_checkpoint(written, state())
    return written


def test_what_is_written_is_read(folder):
    read = read_checkpoint(folder, optimizer=True)
    assert (read.adapter.base_model, read.adapter.lora, read.adapter.target_modules) == ("some/model", SPEC, ("layer",))
    assert read.optimizer.step == 7
    expected = state()
    assert read.adapter.tensors.keys() == expected.adapter.tensors.keys()
    assert read.optimizer.tensors.keys() == expected.optimizer.tensors.keys()
    for found, wanted in ((read.adapter, expected.adapter), (read.optimizer, expected.optimizer)):
        for name, tensor in wanted.tensors.items():
            np.testing.assert_array_equal(found.tensors[name], tensor)
    assert read_checkpoint(folder, optimizer=False).optimizer is None


def test_it_holds_what_peft_and_people_read(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["target_modules"]) == (
        "LORA",
        3,
        32,
        ["layer"],
    )


def test_its_size_is_told(tmp_path):
    size = write_checkpoint(tmp_path / "a", state())
    assert size == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())


def test_a_model_ids_colons_are_in_no_folders_name(folder, tmp_path):
    assert folder.relative_to(tmp_path).parts == ("checkpoints", "s-train-0", "weights", "first")


def test_a_snapshot_without_optimizer_state_says_so_when_that_is_asked_for(tmp_path):
    write_checkpoint(tmp_path / "a", state(optimizer=False))
    assert not (tmp_path / "a" / "optimizer.safetensors").exists()
    with pytest.raises(InvalidInput, match="the checkpoint 'a' holds no optimizer state; load its weights only"):
        read_checkpoint(tmp_path / "a", optimizer=True)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_anywhere_in_a_file_is_found(folder, name):
    """Every 7th byte of each file, and its last. Of the manifest, whitespace may differ: it means nothing."""
    path = folder / name
    intact = path.read_bytes()
    places = [
        place for place in (*range(0, len(intact), 7), len(intact) - 1) if not intact[place : place + 1].isspace()
    ]
    for place in places:
        damaged = bytearray(intact)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(
            CheckpointDamaged, match=r"the checkpoint 'first' (is damaged: .* is not what was written|cannot be read)"
        ):
            read_checkpoint(folder, optimizer=True)
    path.write_bytes(intact)
    read_checkpoint(folder, optimizer=True)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_or_cut_file_is_found_and_named(folder, name):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointDamaged, match="the checkpoint 'first'"):
        check_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointDamaged, match=f"the checkpoint 'first' cannot be read: .*{name}"):
        check_checkpoint(folder)


def test_a_folder_that_is_gone_is_damaged(tmp_path):
    with pytest.raises(CheckpointDamaged, match=r"the checkpoint 'gone' cannot be read: .*No such file"):
        read_checkpoint(tmp_path / "gone", optimizer=False)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path / "kind" / "a", state())
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_folder_is_never_written_over(folder):
    with pytest.raises(OSError, match=r"not empty|exists"):
        write_checkpoint(folder, state(value=2.0))
    assert read_checkpoint(folder, optimizer=False).adapter.tensors.popitem()[1][0, 0] == 1.0
    assert [path.name for path in folder.parent.iterdir()] == ["first"]


def test_a_taken_folder_gives_the_next_one_a_name_of_its_own(folder, tmp_path):
    second = checkpoint_folder(tmp_path, "s:train:0", "weights", "first")
    assert second.parent == folder.parent
    assert second.name.startswith("first~")


def test_deleting_removes_the_folder_and_deleting_again_does_nothing(folder):
    delete_checkpoint(folder)
    assert list(folder.parent.iterdir()) == []
    delete_checkpoint(folder)


class Saver:
    """An executor with one echo model, saved and loaded as the engine would."""

    def __init__(self, data_dir):
        self.data_dir, self.store = data_dir, Store("sqlite://")
        source = ModelSource("some/echo", "echo:vocab=10")
        self.executor = Executor(
            lambda: EchoBackend(source),
            load_registry(),
            self.store,
            KeptFolders(data_dir),
            lambda *_: None,
            MismatchWatch(0, 1),
        )
        self.executor.run("s:train:0", CreateModel("some/echo", SPEC))

    def save(self, name="a", **options):
        return self.executor.run("s:train:0", SaveState(name, **options)).path

    def load(self, path):
        return self.executor.run("s:train:0", LoadState(path, optimizer=True))

    def folders(self):
        return sorted(path.name for path in (self.data_dir / "checkpoints" / "s-train-0" / "weights").iterdir())


@pytest.fixture
def saver(tmp_path):
    return Saver(tmp_path)


def test_a_name_is_taken_once(saver):
    path = saver.save()
    with pytest.raises(AlreadyExists, match=f"{path} exists and never changes; choose another name"):
        saver.save()
    saver.executor.run("s:train:0", SaveForSampler("a"))
    with pytest.raises(AlreadyExists, match="sampler_weights/a exists"):
        saver.executor.run("s:train:0", SaveForSampler("a"))


def test_overwriting_replaces_the_folder_too(saver):
    saver.save()
    before = saver.store.checkpoint("tinker://s:train:0/weights/a")
    path = saver.save(overwrite=True, user_metadata={"run": "2"})
    after = saver.store.checkpoint(path)
    assert after["folder"] != before["folder"]
    assert after["user_metadata"] == {"run": "2"}
    assert saver.folders() == [after["folder"].rpartition("/")[2]]
    saver.load(path)


def test_what_a_crash_left_half_written_is_in_nobodys_way(saver):
    """Died before the rename: a hidden folder. Died after it and before the row: a folder no row knows."""
    parent = saver.data_dir / "checkpoints" / "s-train-0" / "weights"
    for name in (".a.0123456789abcdef", "a"):
        (parent / name).mkdir(parents=True)
        (parent / name / "adapter_model.safetensors").write_bytes(b"half")
    path = saver.save()
    saver.load(path)
    assert saver.store.checkpoint(path)["folder"].rpartition("/")[2].startswith("a~")


def test_an_expired_state_is_gone_and_its_name_is_free(saver):
    saver.save(ttl_seconds=3600)
    row = dict(saver.store.checkpoint("tinker://s:train:0/weights/a"))
    assert row["expires"] == pytest.approx(time.time() + 3600, abs=60)
    saver.store.put_checkpoint(**row | {"expires": time.time() - 1})
    with pytest.raises(UnknownName, match="there is no checkpoint 'tinker://s:train:0/weights/a', or it has expired"):
        saver.load(row["path"])
    saver.load(saver.save())
    assert len(saver.folders()) == 1
