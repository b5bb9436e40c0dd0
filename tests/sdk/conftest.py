"""The vendor's own SDK against a real server: tiny random models, the peft backend, the embedded sampler."""

import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.serving import Running
from tests.tiny_models import SHAPE, VOCABULARY
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.server.app import create_app
from weaver.service import Service

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny random models by name: a Llama with an output layer of its own, a Qwen3 that shares its embeddings."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    made = {
        LLAMA: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
        QWEN: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in made}


class Client(tinker.ServiceClient):
    """Does not wait for ever to be closed, as the SDK (0.38.0) may: it cancels its heartbeat, and one that is under way
    just then can swallow the cancellation and go on. The session is finished before."""

    def __exit__(self, *error):
        with suppress(TimeoutError):
            self.close("success" if error[0] is None else "errored").result(timeout=15)


class Server:
    """A server in threads of this process; `restart` gives its data directory to a new one on another port."""

    def __init__(self, folders, data_dir, clock=time.time, ticks=time.monotonic, registry=None, **settings):
        self.folders, self.data_dir = folders, Path(data_dir)
        self.clock, self.ticks, self.settings, self.registry = clock, ticks, settings, registry
        self.start()

    def start(self):
        models = tuple(ModelSource(name, str(folder), "cpu") for name, folder in self.folders.items())
        config = Config(models=models, data_dir=self.data_dir, **self.settings)
        self.service = Service(config, self.registry, self.clock, self.ticks)
        self.app = create_app(self.service)
        self._running = Running(self.app).start()
        self.url = self._running.url

    def stop(self):
        self._running.stop()
        self.service.close()

    def client(self, **options):
        return Client(base_url=self.url, api_key="tml-test", **options)

    def rest(self):
        return tinker.RestClient(base_url=self.url, api_key="tml-test")

    def admin(self):
        return tinker.AdminClient(base_url=self.url, api_key="tml-test")

    def folder(self, path):
        """Where the server keeps a checkpoint."""
        return self.data_dir / self.service._store.checkpoint(path)["folder"]

    def tensors(self, path):
        """The adapter tensors of a checkpoint, by PEFT's names."""
        return load_file(self.folder(path) / "adapter_model.safetensors")


@pytest.fixture(scope="session")
def server_class():
    return Server


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    running = Server(folders, tmp_path_factory.mktemp("data"))
    yield running
    running.stop()


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def timed(folders, tmp_path):
    """A server of one test's own, whose clocks stand still: `timed.clock` and `timed.ticks`."""
    running = Server(folders, tmp_path / "data", Clock(1_790_000_000.25), Clock(0.0))
    yield running
    running.stop()


@pytest.fixture
def start_server(tmp_path):
    """A maker of servers of other models, each stopped at the end."""
    started = []

    def start(folders):
        started.append(Server(folders, tmp_path / f"data-{len(started)}"))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def service_client(server):
    with server.client() as client:
        yield client


class Reference:
    """The independent computation: transformers + peft, one unpadded datum at a time, loss formulas written out."""

    def __init__(self, base_folder, adapter_folder, alpha=32):
        base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        config = json.loads((Path(adapter_folder) / "adapter_config.json").read_text())
        assert config["lora_alpha"] == alpha
        self.model = PeftModel.from_pretrained(base, adapter_folder, is_trainable=True).eval()

    def logprobs(self, datum):
        tokens = torch.tensor(datum.model_input.to_ints())
        targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].to_numpy())
        columns = targets if targets.ndim == 2 else targets[:, None]
        found = self.model(input_ids=tokens[None]).logits[0].log_softmax(-1).gather(1, columns)
        return found if targets.ndim == 2 else found[:, 0]

    def loss_and_gradients(self, data, formula):
        """The summed loss, each datum's logprobs, and the gradient of every LoRA tensor by PEFT's file names."""
        self.model.zero_grad()
        logprobs = [self.logprobs(datum) for datum in data]
        loss = sum(formula(lp, inputs_of(datum)) for lp, datum in zip(logprobs, data))
        loss.backward()
        gradients = {
            name.replace(".default", ""): parameter.grad.numpy().copy()
            for name, parameter in self.model.named_parameters()
            if "lora_" in name
        }
        return float(loss.detach()), [lp.detach().numpy() for lp in logprobs], gradients


def inputs_of(datum):
    return {name: torch.from_numpy(value.to_numpy()) for name, value in datum.loss_fn_inputs.items()}


class Data:
    """Random training data from one generator."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def datum(self, length, targets=None, **ranges):
        """`length` tokens; with `targets`, that many per token. Each range makes an input of uniform floats."""
        shape = (length,) if targets is None else (length, targets)
        inputs = {"target_tokens": tinker.TensorData.from_numpy(self.rng.integers(2, VOCABULARY, shape))}
        for name, (low, high) in ranges.items():
            values = self.rng.uniform(low, high, shape).astype(np.float32)
            inputs[name] = tinker.TensorData.from_numpy(values)
        tokens = [int(token) for token in self.rng.integers(2, VOCABULARY, length)]
        return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)

    def supervised(self, *lengths):
        """Weights of both signs, whole and fractional."""
        return [self.datum(length, weights=(-1.5, 2.0)) for length in lengths]


@pytest.fixture
def data(request):
    return Data(sum(request.node.name.encode()))


@pytest.fixture
def trained(server, service_client, data):
    """A maker of training clients whose adapter is not at its beginning any more: B is not zero."""

    def make(base_model=LLAMA, rank=4, **options):
        client = service_client.create_lora_training_client(base_model, rank=rank, seed=7, **options).result()
        for _ in range(2):
            client.forward_backward(data.supervised(9, 5), "cross_entropy").result()
            client.optim_step(tinker.AdamParams(learning_rate=0.02)).result()
        return client

    return make


@pytest.fixture
def measured(server):
    """What gradients a model has accumulated: one step of AdamW made a plain multiple of the gradient.

    With both betas 0 and eps far above every gradient, the step is -lr / eps · g: here -1000 · g.
    """
    step = tinker.AdamParams(learning_rate=1e12, beta1=0.0, beta2=0.0, eps=1e9)
    names = iter(range(1_000_000))

    def measure(client):
        before = client.save_state(f"before-{next(names)}").result().path
        client.optim_step(step).result()
        after = server.tensors(client.save_state(f"after-{next(names)}").result().path)
        client.load_state(before).result()
        return {name: (tensor - after[name]) / 1000 for name, tensor in server.tensors(before).items()}

    return measure


@pytest.fixture
def reference(server, folders):
    """The reference at a client's weights of this moment."""

    def make(client, base_model):
        path = client.save_state("reference", overwrite=True).result().path
        return Reference(folders[base_model], server.folder(path))

    return make


@pytest.fixture(scope="session")
def reference_of():
    """The reference of an adapter folder."""
    return Reference


@pytest.fixture(scope="session")
def assert_same_gradients():
    return _assert_same_gradients


def _assert_same_gradients(found, expected, tolerance=1e-4):
    """Every tensor alone: the difference's norm against the norm of what is expected."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = np.linalg.norm(gradient)
        assert size > 0, f"{name} has no gradient, so it would prove nothing"
        difference = np.linalg.norm(found[name] - gradient) / size
        assert difference < tolerance, f"{name}: {difference:.1e}"
