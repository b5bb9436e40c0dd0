import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from weaver_peft.adapters import load_adapter

from weaver.errors import CheckpointDamaged, InvalidInput


@pytest.fixture
def copy(adapters, tmp_path):
    """A copy of an adapter with some fields and tensors changed."""

    def changed(name="all", tensors=None, **fields):
        folder = shutil.copytree(adapters[name].folder, tmp_path / "changed")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | fields))
        if tensors is not None:
            save_file(tensors(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        return folder

    return changed


def test_pairs_are_float32_and_scaled_as_peft_scales_them(base, adapters):
    weights = load_adapter(adapters["patterns"].folder, base)
    scales = {name.removeprefix("model.layers."): (pair.a.shape[0], pair.scale) for name, pair in weights.items()}
    assert scales["0.self_attn.q_proj"] == (7, 6 / 7)
    assert scales["0.self_attn.k_proj"] == (4, 6 / 4)
    assert scales["1.mlp.up_proj"] == (4, 3 / 4)
    assert load_adapter(adapters["all"].folder, base)["model.layers.2.mlp.down_proj"].scale == 4 / 8**0.5
    assert {pair.b.dtype for pair in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["norm"]},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 1]]},
        {"a_field_of_next_year": 1},
    ],
)
def test_what_is_not_computed_is_refused_by_name(base, copy, fields):
    [(field, value)] = fields.items()
    with pytest.raises(InvalidInput) as caught:
        load_adapter(copy(**fields), base)
    assert str(caught.value).endswith(f"changed sets {field}={value!r}, which the backend 'peft' does not compute")


def test_another_kind_of_adapter_is_refused(base, copy):
    with pytest.raises(InvalidInput, match=r"is not a LoRA adapter: its adapter_config\.json does not say so"):
        load_adapter(copy(peft_type="IA3"), base)


def test_a_folder_without_weights_is_damaged(base, copy):
    folder = copy()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointDamaged, match=r"changed cannot be read: adapter_model\.safetensors: "):
        load_adapter(folder, base)


def test_a_truncated_file_is_damaged(base, copy):
    folder = copy()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointDamaged, match=r"changed cannot be read: adapter_model\.safetensors: "):
        load_adapter(folder, base)


def test_a_config_that_is_no_json_is_damaged(base, copy):
    folder = copy()
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointDamaged, match=r"changed cannot be read: adapter_config\.json: "):
        load_adapter(folder, base)


def test_a_missing_matrix_is_damaged(base, copy):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    folder = copy(tensors=lambda tensors: {each: tensors[each] for each in tensors if each != name})
    with pytest.raises(CheckpointDamaged, match=f"lacks '{name}'"):
        load_adapter(folder, base)


def test_weights_of_another_models_shape_are_refused(base, copy):
    def wider(tensors):
        name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
        return tensors | {name: torch.zeros(8, 64)}

    with pytest.raises(InvalidInput, match=r"\[8, 64\] and \[48, 8\] for .*up_proj'; rank 8 on 'tiny' needs \[8, 32\]"):
        load_adapter(copy(tensors=wider), base)


def test_a_rank_that_is_not_the_configs_is_refused(base, copy):
    with pytest.raises(InvalidInput, match="rank 9 on 'tiny' needs"):
        load_adapter(copy(r=9), base)


def test_a_layer_the_model_lacks_is_refused(base, copy):
    def moved(tensors):
        return {name.replace("layers.0", "layers.7"): tensor for name, tensor in tensors.items()}

    with pytest.raises(
        InvalidInput, match=r"adapts 'base_model\.model\.model\.layers\.7\..*', which is no linear layer"
    ):
        load_adapter(copy(tensors=moved), base)


def test_weights_of_the_base_model_that_peft_writes_along_are_accepted_only_unchanged(base, copy, folder):
    name = "base_model.model.model.embed_tokens.weight"
    embedding = base.model.get_input_embeddings().weight.detach().clone()
    changed = copy(name="head", tensors=lambda tensors: tensors | {name: embedding})
    assert "lm_head" in load_adapter(changed, base)
    save_file(
        load_file(changed / "adapter_model.safetensors") | {name: embedding + 1}, changed / "adapter_model.safetensors"
    )
    with pytest.raises(InvalidInput, match=f"has '{name}', which is neither LoRA nor the base model's own weight"):
        load_adapter(changed, base)
