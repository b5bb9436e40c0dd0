"""A server of ours to check, and a way to build one with a fault: by other plugins, or by a subclass."""

import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.registry import load_registry
from weaver.server.app import create_app
from weaver.server.serve import listening_socket, url_of
from weaver.service import Service

MODEL = "tiny/llama"


def same(thing):
    return thing


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("conformance") / "llama"
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def serving(model_folder, tmp_path_factory):
    """Opens a server over HTTP, with another Service class or with one of its parts wrapped."""

    @contextmanager
    def serve(service_class=Service, wrap_backend=same, wrap_sampler=same, wrap_app=same):
        found = load_registry()
        backend, sampler = found.backend("peft"), found.sampler("embedded")
        registry = replace(
            found,
            backends={"peft": replace(backend, open=lambda source: wrap_backend(backend.open(source)))},
            samplers={"embedded": replace(sampler, open=lambda source: wrap_sampler(sampler.open(source)))},
        )
        source = ModelSource(MODEL, str(model_folder), "cpu")
        service = service_class(Config(models=(source,), data_dir=tmp_path_factory.mktemp("data")), registry)
        app = create_app(service)
        with listening_socket("127.0.0.1", 0) as bound:
            bound.listen(512)
            server = uvicorn.Server(uvicorn.Config(wrap_app(app), log_level="warning", lifespan="off", ws="none"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
            thread.start()
            try:
                yield url_of(bound)
            finally:
                app.state.context.stopping.set()
                server.should_exit = True
                thread.join()
                service.close()

    return serve


@pytest.fixture(scope="module")
def url(serving):
    with serving() as address:
        yield address
