"""A tiny model, a plugin that is installed here and in other processes, and backends with and without processes."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from weaver_peft.trainer import open_backend as open_peft

from weaver import workers
from weaver.backend import ModelSource, Pass
from weaver.domain import AdamParams, Datum, LoraSpec
from weaver.plugins.echo import EchoBackend
from weaver.registry import load_registry

VOCABULARY = 97


def install(folder, name, module, package=None):
    """A package as pip would put it into `folder`: the module, and what says that it is a plugin."""
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package or name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[weaver]\n{name} = {name}\n")


@pytest.fixture(scope="package")
def deaths(tmp_path_factory):
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="package", autouse=True)
def plugin(tmp_path_factory, deaths):
    """The plugin, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, "ranks_plugin", Path(__file__).with_name("ranks_plugin.py").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("WEAVER_TEST_DEATHS", str(deaths))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="package")
def check_losses(plugin):
    """Installed beside the plugin, under the name that `check_backend` gives as theirs."""
    install(
        plugin, "check_losses_plugin", Path(__file__).with_name("check_losses_plugin.py").read_text(), "weaver.testing"
    )


@pytest.fixture(autouse=True)
def _no_deaths(deaths):
    for file in deaths.iterdir():
        file.unlink()


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("workers") / "llama"
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    LlamaForCausalLM(LlamaConfig(**shape, **heads, initializer_range=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def registry(plugin):
    return load_registry()


@pytest.fixture(scope="package")
def factory(registry):
    return registry.backend("replicated")


@pytest.fixture(scope="package")
def source(model_folder, factory):
    return ModelSource("tiny", str(model_folder), "cpu", options=factory.effective_options({}))


@pytest.fixture
def open_backend(factory, source):
    """Opens a backend in two processes; closed at the end."""
    with ExitStack() as stack:

        def opened():
            backend = workers.open_backend(factory, source)
            stack.callback(backend.close)
            return backend

        yield opened


@pytest.fixture(scope="package")
def shared(factory, source):
    """One for the tests that leave it as it was."""
    backend = workers.open_backend(factory, source)
    yield backend
    backend.close()


@pytest.fixture
def twin(model_folder):
    """The same in this process: what nothing has disturbed."""
    return open_peft(ModelSource("tiny", str(model_folder), "cpu"))


@pytest.fixture
def echoes(registry):
    """A backend in two processes that start in no time, and its twin in this one."""
    source = ModelSource("echo", f"echo:vocab={VOCABULARY}")
    factory = registry.backend("echoes")
    backend = workers.open_backend(factory, replace(source, options=factory.effective_options({})))
    yield backend, EchoBackend(source)
    backend.close()


class Lesson:
    """The same operations, for any backend: two models, some passes, some steps."""

    LORA = LoraSpec(rank=4, seed=3)
    STEP = AdamParams(learning_rate=0.02, weight_decay=0.1)

    def __init__(self, registry):
        self.registry = registry

    def one_pass(self, number, model_id="a", loss="cross_entropy", **config):
        rng = np.random.default_rng(number)
        data = []
        for length in (7, 12):
            inputs = {"target_tokens": rng.integers(0, VOCABULARY, length)}
            inputs["weights"] = rng.uniform(-1, 2, length).astype(np.float32)
            data.append(Datum(rng.integers(0, VOCABULARY, length), inputs))
        record = self.registry.loss(loss)
        return Pass(model_id, tuple(data), record, record.effective_config(config), True)

    def operations(self, **loss):
        """What is done, one call each; the loss is for the pass in the middle."""
        yield lambda backend: backend.create_model("a", self.LORA)
        yield lambda backend: backend.create_model("b", LoraSpec(rank=2, seed=5))
        yield lambda backend: backend.forward_backward([self.one_pass(1), self.one_pass(2, "b")])
        yield lambda backend: backend.optim_step("a", self.STEP)
        yield lambda backend: backend.forward_backward([self.one_pass(3)])
        yield lambda backend: backend.forward_backward([self.one_pass(4, **loss), self.one_pass(5, "b")])
        yield lambda backend: backend.export_state("a", optimizer=True)  # gradients are not part of it, and stay
        yield lambda backend: backend.optim_step("a", self.STEP)
        yield lambda backend: backend.optim_step("b", self.STEP)
        yield lambda backend: backend.forward_backward([self.one_pass(6)])
        yield lambda backend: backend.optim_step("a", self.STEP)


@pytest.fixture
def lesson(registry):
    return Lesson(registry)


@pytest.fixture
def assert_same_models():
    def same(found, expected, model_ids=("a", "b"), tolerance=1e-5):
        for model_id in model_ids:
            one, other = (backend.export_state(model_id, optimizer=True) for backend in (found, expected))
            assert one.optimizer.step == other.optimizer.step > 0
            for mine, theirs in ((one.adapter, other.adapter), (one.optimizer, other.optimizer)):
                assert mine.tensors.keys() == theirs.tensors.keys()
                for name, tensor in theirs.tensors.items():
                    near = tolerance * max(1.0, np.abs(tensor).max())
                    np.testing.assert_allclose(mine.tensors[name], tensor, rtol=0, atol=near, err_msg=name)

    return same
