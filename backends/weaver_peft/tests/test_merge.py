"""A merged model, loaded by transformers alone, against the base model with the adapter in peft."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from weaver_peft.merge import merge

from weaver.adapter_folders import read_adapter
from weaver.domain import ModelSource
from weaver.errors import InvalidInput

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SOME, HEAD = ["q_proj", "down_proj"], ["v_proj", "lm_head"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """One with an output layer of its own, one that shares its embeddings; in both dtypes."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("bases")
    made = {
        "untied": LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
        "tied": Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
    }
    for name, model in made.items():
        model.save_pretrained(root / f"{name}-float32")
        model.to(torch.bfloat16).save_pretrained(root / f"{name}-bfloat16")
    return root


@pytest.fixture
def adapter(tmp_path):
    def make(base, modules):
        torch.manual_seed(1)
        settings = LoraConfig(r=4, lora_alpha=9, target_modules=modules, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


def logits(model):
    tokens = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.eval().float()(input_ids=tokens).logits


def merged(base, adapter, tmp_path, dtype="auto"):
    out = tmp_path / "out"
    out.mkdir()
    merge(ModelSource("some/model", str(base), "cpu", dtype), read_adapter(adapter, "some/model"), out)
    return out


@pytest.mark.parametrize("modules", [SOME, HEAD], ids=["layers", "output layer"])
@pytest.mark.parametrize("tie", ["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_computes_what_the_base_model_and_the_adapter_do(bases, adapter, tmp_path, tie, dtype, modules):
    """In float32 whatever the base model's dtype: nothing is rounded on the way."""
    base = bases / f"{tie}-{dtype}"
    folder = adapter(base, modules)
    out = merged(base, folder, tmp_path, "float32")
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    found = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert found.dtype == torch.float32
    assert found.config.tie_word_embeddings == (tie == "tied" and modules is SOME)
    torch.testing.assert_close(logits(found), logits(expected), atol=1e-4, rtol=0)
    assert (logits(expected) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.1


@pytest.mark.parametrize("tie", ["untied", "tied"])
def test_the_base_models_dtype_is_kept_and_weights_are_rounded_once(bases, adapter, tmp_path, tie):
    base = bases / f"{tie}-bfloat16"
    folder = adapter(base, HEAD)
    written = load_file(merged(base, folder, tmp_path) / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    before, factors = load_file(base / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    for module in ("model.layers.1.self_attn.v_proj", "lm_head"):
        a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        name = f"{module}.weight" if f"{module}.weight" in before else "model.embed_tokens.weight"
        expected = (before[name].float() + 9 / 4 * (b.float() @ a.float())).bfloat16()
        torch.testing.assert_close(written[f"{module}.weight"], expected, atol=0, rtol=0)
    for untouched in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(written[untouched], before[untouched])


def test_tokenizer_and_generation_settings_are_copied_as_they_are(bases, adapter, tmp_path):
    base = bases / "tied-float32"
    folder = adapter(base, SOME)
    # transformers itself would refuse to save these settings
    settings = json.dumps({"do_sample": False, "temperature": 0.5, "eos_token_id": [1, 2]}).encode()
    beside = {"tokenizer.json": b"{ }", "merges.txt": b"a b", "generation_config.json": settings}
    for name, content in beside.items():
        (base / name).write_bytes(content)
    out = merged(base, folder, tmp_path)
    assert {name: (out / name).read_bytes() for name in beside} == beside
    assert {file.name for file in out.iterdir()} == {"config.json", "model.safetensors", *beside}


def test_an_adapter_that_does_not_fit_is_refused(bases, adapter, tmp_path):
    folder = adapter(bases / "tied-float32", ["q_proj"])
    with pytest.raises(InvalidInput, match=r"has shape .*; this model's has"):
        merged(bases / "untied-float32", folder, tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_a_quantized_base_model_is_refused(bases, adapter, tmp_path):
    base = tmp_path / "quantized"
    shutil.copytree(bases / "untied-float32", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(InvalidInput, match="is quantized; merge into the weights it was made from"):
        merged(base, adapter(bases / "untied-float32", SOME), tmp_path)
