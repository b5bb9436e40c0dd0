"""Which base model a folder is for, where any model can be served."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from weaver.adapter_folders import ImportDirs
from weaver.backend import ModelSource
from weaver.domain import CreateFromState, LoraSpec
from weaver.engine.executor import Executor
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import InvalidInput
from weaver.kept import KeptFolders
from weaver.plugins.echo import EchoBackend
from weaver.registry import load_registry
from weaver.service.imports import Imports
from weaver.store import Store


@pytest.fixture
def path(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["up_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    tensors = {"A": np.ones((2, 8), np.float32), "B": np.ones((16, 2), np.float32)}
    named = {f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight": one for side, one in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    return f"file:{tmp_path}"


@pytest.fixture
def dirs(tmp_path):
    return ImportDirs((tmp_path,))


def test_any_model_that_a_folder_names_is_meant_where_any_can_be_served(path, dirs):
    saved = Imports((), dirs, any_model=True).saved(path, None, optimizer=False)
    assert saved.base_model == "org/base"
    only_mlp = {"train_attn": False, "train_unembed": False, "only_modules": ("up_proj",)}
    assert saved.lora == LoraSpec(rank=2, alpha=6.0, seed=0, **only_mlp)
    with pytest.raises(InvalidInput, match="none of the models served here"):
        Imports((), dirs, any_model=False).saved(path, None, optimizer=False)


def test_two_names_of_one_model_must_be_told_apart(path, dirs):
    imports = Imports((ModelSource("a", "org/base"), ModelSource("b", "org/base")), dirs, any_model=False)
    with pytest.raises(InvalidInput, match=r"several of the models served here \(a, b\); name one as base_model"):
        imports.saved(path, None, optimizer=False)
    assert imports.saved(path, "b", optimizer=False).base_model == "b"


def test_a_folder_that_has_changed_since_it_was_accepted_is_refused(path, dirs, tmp_path):
    saved = Imports((), dirs, any_model=True).saved(path, None, optimizer=False)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
    store = Store.in_folder(tmp_path / "data")
    executor = Executor(
        lambda: EchoBackend(ModelSource("e", "echo")),
        load_registry(),
        store,
        KeptFolders(tmp_path),
        print,
        MismatchWatch(0, 1),
        dirs,
    )
    with pytest.raises(InvalidInput, match="has changed since the request was accepted; ask again"):
        executor.run("m", CreateFromState(saved.base_model, saved.lora, path, optimizer=False))
    executor.close()
    store.close()
