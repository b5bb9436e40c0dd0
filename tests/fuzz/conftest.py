"""The servers that requests are thrown at."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.fuzz.world import World
from tests.openai.conftest import TEMPLATE, write_model
from weaver.backend import ModelSource
from weaver.config import Config


def echo(folder, **options):
    """A server of the echo plugins: no torch, so it is quick."""
    source = ModelSource("some/echo", "echo:vocab=100,context=64")
    config = Config(models=(source,), data_dir=folder, backend="echo", sampler="echo", gap_seconds=1e6)
    return World(config, source.name, **options)


def training(model_folder, folder):
    """A server of the backend that trains."""
    source = ModelSource("tiny/llama", str(model_folder), "cpu")
    return World(Config(models=(source,), data_dir=folder, gap_seconds=1e6), source.name)


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    running = echo(tmp_path_factory.mktemp("fuzz"))
    yield running
    running.close()


@pytest.fixture
def start_world(tmp_path):
    """A maker of servers of the echo plugins with a fault in the service."""
    started = []

    def start(service_class, **options):
        started.append(echo(tmp_path, service_class=service_class, **options))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory):
    """A random model of two layers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    shape = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def speaking(tmp_path_factory):
    """A server whose model has a tokenizer and a chat template."""
    folder = write_model(tmp_path_factory.mktemp("speaking"), TEMPLATE, context=80)
    source = ModelSource("tiny/bytes", str(folder), "cpu")
    config = Config(models=(source,), data_dir=tmp_path_factory.mktemp("fuzz"), gap_seconds=1e6)
    running = World(config, source.name)
    yield running
    running.close()


@pytest.fixture(scope="package")
def tiny(tiny_model, tmp_path_factory):
    running = training(tiny_model, tmp_path_factory.mktemp("fuzz"))
    yield running
    running.close()


@pytest.fixture
def another_tiny(tiny_model, tmp_path):
    running = training(tiny_model, tmp_path)
    yield running
    running.close()
