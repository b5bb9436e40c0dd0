"""The unmodified SDK `nex-weaver` 1.19.2 against a real server: `make test-nex`. Its tests are in `inside`, each is one
here; and their numbers are compared with Tinker's SDK, transformers and peft, which compute the same."""

import ast
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from environment import KEY, TINY, checks

NAMES = [
    f"{file.stem}::{function.name}"
    for file in checks()
    for function in ast.parse(file.read_text()).body
    if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
]
FIRST, SECOND = [5, 6, 7, 8, 9, 10], [20, 21, 22, 23]
WEIGHTS = [[0.5, 1.0, -1.0, 2.0, 0.25], [1.0, 1.0, 3.0]]
SDKS_ADAM = tinker.AdamParams(
    learning_rate=0.05, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.01, grad_clip_norm=1.0
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(1600)
def test_inside(inside, name):
    assert not inside[0].get(name, "it did not run"), inside[0].get(name)


def test_there_is_nothing_else_inside(inside):
    assert set(inside[0]) == set(NAMES)


@pytest.fixture(scope="module")
def tinker_service(url):
    client = tinker.ServiceClient(base_url=url, api_key=KEY)
    yield client
    with suppress(TimeoutError):  # the SDK's close can wait for its own heartbeat for ever
        client.close("success").result(15)


def tinker_model(service):
    return service.create_lora_training_client(TINY, rank=8, seed=5)


def datum(tokens, **inputs):
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], **inputs})


def sentences():
    return [datum(tokens, weights=weights) for tokens, weights in zip((FIRST, SECOND), WEIGHTS, strict=True)]


def flat(rows):
    return [number for row in rows for number in row]


def test_cross_entropy_and_adam_are_those_of_tinkers_sdk(inside, tinker_service):
    """The same seed, data and six numbers of Adam, three steps."""
    found, client = inside[1]["cross_entropy"], tinker_model(tinker_service)
    for logprobs, grad_norm in zip(found["logprobs"], found["grad_norms"], strict=True):
        result = client.forward_backward(sentences(), "cross_entropy").result()
        expected = [output["logprobs"].tolist() for output in result.loss_fn_outputs]
        assert flat(logprobs) == pytest.approx(flat(expected), rel=1e-4)
        assert grad_norm == pytest.approx(client.optim_step(SDKS_ADAM).result().metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("loss", ["importance_sampling", "truncated_importance_sampling", "ppo_clip"])
def test_the_policy_losses_are_those_of_tinkers_sdk(inside, tinker_service, loss):
    sampled = [[-1.0, -2.0, -0.5, -3.0, -1.5], [-2.0, -2.5, -1.0]]
    advantages = [[1.0, -1.0, 0.5, 0.0, 2.0], [-0.5, 1.0, 1.0]]
    rows = zip((FIRST, SECOND), sampled, advantages, strict=True)
    data = [datum(tokens, logprobs=logprobs, advantages=advantage) for tokens, logprobs, advantage in rows]
    client = tinker_model(tinker_service)
    result = client.forward_backward(data, loss).result()
    found = inside[1][loss]
    assert found["loss"] == pytest.approx(result.metrics["loss:sum"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(client.optim_step(SDKS_ADAM).result().metrics["grad_norm"], rel=1e-4)
    if loss == "importance_sampling":
        ratios = [np.exp(np.array(new) - old) for new, old in zip(found["logprobs"], sampled, strict=True)]
        by_hand = -sum((ratio * advantage).sum() for ratio, advantage in zip(ratios, advantages, strict=True))
        assert found["loss"] == pytest.approx(by_hand, rel=1e-4)


def test_a_custom_loss_has_the_gradient_of_tinkers_sdk(inside, tinker_service):
    """The variance of the logprobs, six steps: values and norms."""

    def spread(data, logprobs):
        return torch.cat(list(logprobs)).var(), {}

    client, found = tinker_model(tinker_service), inside[1]["variance"]
    adam = tinker.AdamParams(learning_rate=0.02, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0, grad_clip_norm=1.0)
    for grad_norm in found["grad_norms"]:
        client.forward_backward_custom(sentences(), spread).result()
        assert grad_norm == pytest.approx(client.optim_step(adam).result().metrics["grad_norm"], rel=1e-3)


def logprobs_by_transformers(model, tokens, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


def test_a_losss_temperature_is_that_of_the_softmax(inside, tiny_folder):
    """A new adapter changes nothing, so transformers can say what the logprobs are."""
    found, model = inside[1]["temperature"], AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert found["plain"] == pytest.approx(logprobs_by_transformers(model, FIRST), abs=1e-4)
    for name in ("forward", "cross_entropy"):
        assert found[name] == pytest.approx(logprobs_by_transformers(model, FIRST, 0.5), abs=1e-4)


def test_what_a_sampling_mask_leaves_is_what_transformers_finds_likely(inside, tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert len(inside[1]["masks"]) == 3
    for one in inside[1]["masks"].values():
        with torch.no_grad():
            logits = model(torch.tensor([one["tokens"]])).logits[0].float() / 0.7
        for t, (target, row) in enumerate(zip(one["tokens"][1:], one["rows"], strict=True)):
            expected = logits[t, target] - logits[t, row or slice(None)].logsumexp(0)
            assert one["logprobs"][t] == pytest.approx(float(expected), abs=1e-4)


def test_what_was_downloaded_is_what_peft_and_transformers_load(inside, tiny_folder):
    found, out = inside[1]["exported"], inside[2]
    merged = AutoModelForCausalLM.from_pretrained(out / "hf_model", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, out / "hf_adapter")
    for model in (merged, adapted):
        assert found["logprobs"][1:] == pytest.approx(logprobs_by_transformers(model, found["tokens"]), abs=1e-3)
