"""A tiny random model that reads letters, a server of it, and the examples with either `tinker` in them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import tinker as sdk
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import weaver.compat.tinker as ours
from tests.serving import serving
from weaver.backend import ModelSource
from weaver.compat.tinker.transports.in_process import end_all, in_process
from weaver.config import Config
from weaver.service import Service

LOSSES = Path(__file__).parents[2] / "examples/losses"
LETTERS = "?" + "".join(map(chr, range(32, 63))) + "".join(map(chr, range(64, 127)))
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder, which is the model's name too: a token is a printable letter."""
    folder = tmp_path_factory.mktemp("models") / "letters"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(LETTERS), **SHAPE)).save_pretrained(folder)
    letters = Tokenizer(BPE({letter: number for number, letter in enumerate(LETTERS)}, [], unk_token="?"))
    letters.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def server(model, tmp_path_factory):
    """A server in threads of this process: its URL and its service."""
    service = Service(Config(models=(ModelSource(model, model, "cpu"),), data_dir=tmp_path_factory.mktemp("server")))
    with serving(service) as url:
        yield url, service
    service.close()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where what runs in this process, or is run by `weaver run`, keeps its things."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEAVER_DATA_DIR", str(folder))
        yield folder
        end_all()


class Way:
    """A way to run the examples: which `tinker` they import, and the service that computes for them."""

    def __init__(self, tinker, service):
        self.tinker, self.service = tinker, service

    def example(self, name):
        """The module of that example."""
        spec = importlib.util.spec_from_file_location(f"example_{name}", LOSSES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def checkpoint(self, path):
        """The folder of one."""
        service = self.service()
        return Path(service._data_dir) / service._store.checkpoint(path)["folder"]


@pytest.fixture(params=["sdk over http", "drop-in in process"])
def way(request, server, data_dir, monkeypatch):
    url, service = server
    if request.param == "sdk over http":
        monkeypatch.setenv("TINKER_BASE_URL", url)
        monkeypatch.setenv("TINKER_API_KEY", "tml-test")
        yield Way(sdk, lambda: service)
        return
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "tinker", ours)
    yield Way(ours, lambda: in_process().service)
