"""A plugin of pytest for the environment of the SDK: clients of the server in WEAVER_BASE_URL, the numbers found, and
which public methods were called. Nothing here sees weaver's own code: `weaver` is the SDK."""

import functools
import inspect
import json
import os
from pathlib import Path

import pytest
from weaver.managed_dataset_client import AsyncManagedDatasetsClient, ManagedDatasetsClient

import weaver
from weaver import ServiceClient, types
from weaver.operations import AsyncOperationHandle, OperationHandle
from weaver.sampling_client import SamplingClient
from weaver.training_client import TrainingClient
from weaver.training_pipeline import SubmitAheadQueue, TokenBudgetBatcher

SMOL, TINY = "HuggingFaceTB/SmolLM2-135M-Instruct", "tiny/llama"
CLIENTS = (
    ServiceClient, weaver.AsyncServiceClient, TrainingClient, weaver.AsyncTrainingClient, SamplingClient,
    weaver.AsyncSamplingClient, OperationHandle, AsyncOperationHandle, ManagedDatasetsClient,
    AsyncManagedDatasetsClient, SubmitAheadQueue, TokenBudgetBatcher,
)  # fmt: skip
CALLED = set()


def public_methods(client):
    """Names of methods and properties that a user may call, its parents' too."""
    names = {name for name in dir(client) if not name.startswith("_")}
    return {name for name in names if not inspect.isclass(getattr(client, name))}


def _watch(client, name):
    found = inspect.getattr_static(client, name)

    def noted(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            CALLED.add((client.__name__, name))
            return function(*args, **kwargs)

        return call

    if isinstance(found, property):
        setattr(client, name, property(noted(found.fget), found.fset))
    elif isinstance(found, classmethod):
        setattr(client, name, classmethod(noted(found.__func__)))
    elif isinstance(found, functools.cached_property):
        watched = functools.cached_property(noted(found.func))
        watched.__set_name__(client, name)
        setattr(client, name, watched)
    elif inspect.isfunction(found):
        setattr(client, name, noted(found))
    else:  # a field of a dataclass: there is nothing to call
        CALLED.add((client.__name__, name))


for _client in CLIENTS:
    for _name in public_methods(_client):
        _watch(_client, _name)


@pytest.fixture(scope="session")
def service():
    """One client for all tests. Its heartbeat is quick, for closing waits for it."""
    with ServiceClient(heartbeat_interval=0.2, name="checks", labels={"suite": "nex"}) as client:
        yield client


@pytest.fixture(scope="session")
def numbers():
    """What was found, by name, for the tests outside to compare with what others compute."""
    found = {}
    yield found
    Path(os.environ["NEX_NUMBERS"]).write_text(json.dumps(found))


@pytest.fixture(scope="session")
def tokenizer(service):
    return service.create_model(base_model=SMOL, lora_config=types.LoraConfig(rank=1)).get_tokenizer()


def sentence(tokens, weights=None):
    """A datum of cross_entropy: each token but the first is a target."""
    inputs = {"target_tokens": tokens[1:], "weights": weights or [1.0] * (len(tokens) - 1)}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def answer(tokenizer, question, reply):
    """A datum of which only the reply counts."""
    asked = prompt(tokenizer, question)
    told = tokenizer.encode(f" {reply}\n", add_special_tokens=False)
    return sentence([*asked, *told], [0.0] * (len(asked) - 1) + [1.0] * len(told))


def prompt(tokenizer, question):
    return tokenizer.encode(f"English: {question}\nPig Latin:", add_special_tokens=False)


def adam(learning_rate, **others):
    return types.AdamParams(learning_rate=learning_rate, **others)


def logprobs_of(result):
    return [output["logprobs"]["data"] for output in result["result"]["loss_fn_outputs"]]


def nll(result, data):
    """Of a target, weighted, as the SDK's own examples compute it."""
    pairs = zip(logprobs_of(result), data, strict=True)
    weights = [datum.loss_fn_inputs["weights"].tolist() for datum in data]
    total = sum(-value * weight for (logprobs, _), row in zip(pairs, weights, strict=True)
                for value, weight in zip(logprobs, row, strict=True))  # fmt: skip
    return total / sum(map(sum, weights))
