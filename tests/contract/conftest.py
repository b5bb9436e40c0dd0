"""Three ways to train, which must not differ: the vendor's SDK over HTTP, weaver's tinker over HTTP and in process."""

import os
from pathlib import Path

import numpy as np
import pytest
import tinker as sdk
from safetensors.numpy import load_file

import weaver.compat.tinker as ours
from tests.serving import serving
from tests.tiny_models import VOCABULARY, write_llama
from weaver.backend import ModelSource
from weaver.compat.tinker.transports.in_process import end_all, in_process
from weaver.config import Config
from weaver.service import Service

MODEL = "tiny/llama"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random model."""
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):
    """A server in threads of this process: its URL and its service."""
    models = (ModelSource(MODEL, str(folder), "cpu"),)
    service = Service(Config(models=models, data_dir=tmp_path_factory.mktemp("server")))
    with serving(service) as url:
        yield url, service
    service.close()


@pytest.fixture(scope="session")
def local(folder, tmp_path_factory):
    """The data directory and the model of what runs in this process."""
    data_dir = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEAVER_DATA_DIR", str(data_dir))
        patch.setenv("WEAVER_MODEL_ALIASES", f"{MODEL}={folder}")
        patch.delenv("TINKER_BASE_URL", raising=False)
        yield data_dir
        end_all()


class Way:
    """One of the three. `tinker` is the package to use with it."""

    def __init__(self, name, tinker, options, service):
        self.name, self.tinker, self._options, self._service = name, tinker, options, service

    def client(self, **more):
        return self.tinker.ServiceClient(**self._options, **more)

    def rest(self):
        return self.tinker.RestClient(**self._options)

    def admin(self):
        return self.tinker.AdminClient(**self._options)

    @property
    def service(self):
        return self._service()

    def tensors(self, path):
        """The adapter in a checkpoint, by PEFT's names."""
        service = self.service
        return load_file(
            Path(service._data_dir) / service._store.checkpoint(path)["folder"] / "adapter_model.safetensors"
        )

    def prompt(self, *tokens):
        return self.tinker.ModelInput.from_ints(list(tokens))

    def datum(self, length, seed=0, targets=None, **ranges):
        """Random tokens and targets; each range makes an input of uniform floats."""
        rng = np.random.default_rng([length, seed])
        shape = (length,) if targets is None else (length, targets)
        inputs = {"target_tokens": rng.integers(2, VOCABULARY, shape)}
        for name, (low, high) in (ranges or {"weights": (-1.5, 2.0)}).items():
            inputs[name] = rng.uniform(low, high, shape).astype(np.float32)
        tokens = [int(token) for token in rng.integers(2, VOCABULARY, length)]
        return self.tinker.Datum(self.prompt(*tokens), inputs)


@pytest.fixture(scope="session")
def ways(server, local):
    url, service = server
    wire = {"base_url": url, "api_key": "tml-test"}
    return {
        "sdk": Way("sdk", sdk, wire, lambda: service),
        "wire": Way("wire", ours, wire, lambda: service),
        "in process": Way("in process", ours, {}, lambda: in_process().service),
    }


@pytest.fixture(params=["sdk", "wire", "in process"])
def way(request, ways):
    return ways[request.param]


@pytest.fixture(params=["wire", "in process"])
def our_way(request, ways):
    return ways[request.param]


@pytest.fixture
def client(way):
    """Not closed: the SDK (0.38.0) may wait for ever when it is."""
    return way.client()


@pytest.fixture
def trainer(client):
    return client.create_lora_training_client(MODEL, rank=4, seed=7).result()


@pytest.fixture(autouse=True)
def no_key_needed_in_process(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TINKER_") and name != "TINKER_TELEMETRY"]:
        monkeypatch.delenv(name)
