"""Several names for one model cost its memory once."""

import gc
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from weaver_peft.base_model import load_base_model

from weaver.domain import ModelSource


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def linked(folder):
    """The same weights through a link, as `weaver workbench` writes a folder."""
    other = folder.with_name("other")
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("*.safetensors"))
    (other / "model.safetensors").symlink_to(folder / "model.safetensors")
    return other


def source(name, folder, **settings):
    return ModelSource(name, str(folder), device="cpu", **settings)


def test_two_names_for_one_folder_share_its_weights_and_keep_their_names(folder, linked):
    one, two, three = (load_base_model(source(*each)) for each in (("one", folder), ("two", folder), ("three", linked)))
    assert one.model is two.model is three.model
    assert [base.facts.name for base in (one, two, three)] == ["one", "two", "three"]
    assert [base.facts.tokenizer_location for base in (one, two, three)] == [str(folder), str(folder), str(linked)]
    assert one.modules == three.modules


def test_whoever_asks_again_gets_the_same_one(folder):
    assert load_base_model(source("one", folder)) is load_base_model(source("one", folder))


def test_the_weights_stay_while_any_name_is_held_and_go_with_the_last(folder):
    one, two = load_base_model(source("one", folder)), load_base_model(source("two", folder))
    model = id(one.model)
    del one
    gc.collect()
    assert id(load_base_model(source("three", folder)).model) == model == id(two.model)


def test_what_computes_otherwise_is_not_shared(folder, linked):
    config = linked / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'))
    one, other, half = (
        load_base_model(source("one", folder)),
        load_base_model(source("other", linked)),
        load_base_model(source("half", folder, dtype="bfloat16")),
    )
    assert one.model is not other.model
    assert one.model.config.rms_norm_eps != other.model.config.rms_norm_eps
    assert one.model is not half.model
