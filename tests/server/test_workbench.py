"""`weaver workbench`: what the cookbook's offline rules accept, and what it says to do with it."""

import json
import os
import shlex
import tomllib

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from weaver.server.cli import weaver

SPECIAL = ["<s>", "<|im_end|>", "<spare_1>", "<spare_2>", "<spare_3>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<spare_3>{% endfor %}"


def model_folder(folder, special=SPECIAL):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    LlamaConfig(vocab_size=16, hidden_size=4, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model"))


def workbench(directory, *aliases):
    options = [word for alias in aliases for word in ("--alias", alias)]
    return CliRunner().invoke(weaver, ["workbench", str(directory), *options])


def written(directory, *aliases):
    result = workbench(directory, *aliases)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(directory, *aliases):
    result = workbench(directory, *aliases)
    assert result.exit_code != 0
    return result.output


def test_each_name_is_a_folder_with_a_tokenizer_a_configuration_and_linked_weights(folder, tmp_path, monkeypatch):
    written(tmp_path, f"Qwen/Qwen3-8B-Base={folder}", f"meta-llama/Llama-3.2-1B={folder}")
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/Qwen3-8B-Base", "meta-llama/Llama-3.2-1B"):
        assert AutoTokenizer.from_pretrained(name).encode("a b<|im_end|>") == [0, 1, 4]
        assert json.loads((tmp_path / name / "config.json").read_text())["vocab_size"] == 16
        assert (tmp_path / name / "model.safetensors").resolve() == folder / "model.safetensors"
        assert not (tmp_path / name / "tokenizer.json").is_symlink()


def test_it_says_what_to_serve_and_what_to_set(folder, tmp_path):
    lines = written(tmp_path, f"Qwen/Qwen3-8B-Base={folder}").splitlines()
    assert f"  weaver serve --model {shlex.quote(f'Qwen/Qwen3-8B-Base={folder}')}" in lines
    [export] = [line for line in lines if line.startswith("  export ")]
    for setting in ("TINKER_BASE_URL=http://", "TINKER_API_KEY=tml-", "HF_HUB_OFFLINE=1", "HF_DATASETS_OFFLINE=1"):
        assert f" {setting}" in export


def test_the_names_are_settings_for_what_runs_in_process_there(folder, tmp_path):
    written(tmp_path, f"a/b={folder}")
    written(tmp_path, f"Qwen/Qwen3.5-4B={folder}")
    settings = tomllib.loads((tmp_path / "weaver.toml").read_text())
    assert settings == {"models": {"a/b": str(folder), "Qwen/Qwen3.5-4B": str(tmp_path / "Qwen/Qwen3.5-4B")}}


def test_settings_of_somebody_else_stay(folder, tmp_path):
    (tmp_path / "weaver.toml").write_text("[models]\nmine = 'demo'\n")
    assert "which is not of this command and stays" in written(tmp_path, f"a/b={folder}")
    assert (tmp_path / "weaver.toml").read_text() == "[models]\nmine = 'demo'\n"


def test_a_family_whose_renderer_needs_think_tokens_gets_them_from_spare_ones_and_is_told(folder, tmp_path):
    said = written(tmp_path, f"Qwen/Qwen3.5-4B={folder}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "Qwen/Qwen3.5-4B")
    assert tokenizer.encode("<think>a</think>") == [5, 0, 6], "ids stay where the spare tokens were"
    assert tokenizer.decode([5, 0, 6], skip_special_tokens=True) == "<think> a </think>"
    assert tokenizer.encode("<spare_3>") == [7], "a token that the chat template mentions is not spare"
    assert "needs <think> as one token: in this copy the unused <spare_1> is called so" in said
    assert "needs </think> as one token: in this copy the unused <spare_2> is called so" in said
    assert f"--model Qwen/Qwen3.5-4B={tmp_path / 'Qwen/Qwen3.5-4B'}" in said, (
        "served with the tokenizer that was renamed"
    )
    assert AutoTokenizer.from_pretrained(folder).encode("<spare_1>") == [5], "the model's own folder is as it was"


def test_a_tokenizer_that_has_think_tokens_stays_as_it_is(tmp_path):
    own = model_folder(tmp_path / "own", [*SPECIAL, "<think>", "</think>"])
    said = written(tmp_path / "bench", f"Qwen/Qwen3.5-4B={own}")
    assert "needs <think>" not in said
    assert f"--model Qwen/Qwen3.5-4B={own}" in said


def test_a_tokenizer_without_spare_tokens_is_refused_for_such_a_family(tmp_path):
    own = model_folder(tmp_path / "own", ["<|im_end|>", "<spare_3>"])
    said = refusal(tmp_path / "bench", f"Qwen/Qwen3.6-27B={own}")
    assert "--alias Qwen/Qwen3.6-27B" in said
    assert "two unused special tokens" in said
    assert not (tmp_path / "bench/Qwen/Qwen3.6-27B").exists()
    written(tmp_path / "bench", f"Qwen/Qwen3-8B={own}")


def test_writing_again_replaces_what_it_wrote_and_nothing_else(folder, tmp_path):
    written(tmp_path, f"a/b={folder}")
    (tmp_path / "a/b/tokenizer.json").write_text("damaged")
    written(tmp_path, f"a/b={folder}")
    assert AutoTokenizer.from_pretrained(tmp_path / "a/b").encode("a") == [0]
    (tmp_path / "a/mine").mkdir()
    (tmp_path / "a/mine/diary.txt").write_text("mine")
    assert "remove it, or choose another folder" in refusal(tmp_path, f"a/mine={folder}")
    assert os.listdir(tmp_path / "a/mine") == ["diary.txt"]


@pytest.mark.parametrize("name", ["Qwen3", "a/b/c", "../x/y", "a/..", "/a/b", "a/b:peft", "a b/c", "-a/b"])
def test_a_name_that_is_not_org_slash_name_is_refused(name, folder, tmp_path):
    assert "must be ORG/NAME=FOLDER" in refusal(tmp_path / "bench", f"{name}={folder}")
    assert not (tmp_path / "bench").exists()


def test_a_folder_without_a_model_is_refused_before_anything_is_written(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    said = refusal(tmp_path / "bench", f"a/b={folder}", f"c/d={tmp_path / 'empty'}")
    assert "'c/d'" in said
    assert not (tmp_path / "bench").exists()


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    LlamaConfig(vocab_size=16).save_pretrained(tmp_path / "bare")
    assert "holds no tokenizer" in refusal(tmp_path / "bench", f"a/b={tmp_path / 'bare'}")


@pytest.mark.demo_model
def test_the_demo_model_is_called_demo(tmp_path):
    said = written(tmp_path, "Qwen/Qwen3-8B-Base=demo", "Qwen/Qwen3.5-4B=demo")
    assert "--model Qwen/Qwen3-8B-Base=demo" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "Qwen/Qwen3.5-4B")
    assert len(tokenizer.encode("<think></think>")) == 2
    assert max(tokenizer.get_vocab().values()) < 49_152
