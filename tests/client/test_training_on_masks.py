"""Training over what was left when tokens were drawn: the input `sampling_mask`, in this process and on a server."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import weaver
from tests.tiny_models import VOCABULARY

from .conftest import datum, new_model

types = weaver.types
TOKENS, TEMPERATURE = [5, 9, 3, 7, 2, 8], 0.7
WEIGHTS = [0.5, 1.0, -1.0, 2.0, 0.25]
MASKS = {
    "jagged": [[9, 2, 90], [], [7], [2, 3, 4, 5, 11], [8, 10]],
    "rows of one length": [[9, 2], [3, 4], [7, 1], [2, 96], [8, 0]],
    "tensor": torch.tensor([[9, 2], [3, 4], [7, 1], [2, 96], [8, 0]]),
    "nothing left out": [[], [], [], [], []],
}


def masked(mask):
    return datum(TOKENS, weights=WEIGHTS, sampling_mask=mask)


def rows_of(mask):
    return mask if isinstance(mask, list) else mask.tolist()


@pytest.fixture(scope="module")
def logits(folder):
    """Of a new adapter, which changes nothing, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, :-1] / TEMPERATURE


@pytest.mark.parametrize("name", MASKS)
def test_logprobs_are_over_the_rows(trainer, logits, name):
    result = trainer.forward_backward(
        [masked(MASKS[name])], "cross_entropy", loss_fn_config={"temperature": TEMPERATURE}
    )
    [output] = result["result"]["loss_fn_outputs"]
    for t, (target, row) in enumerate(zip(TOKENS[1:], rows_of(MASKS[name]), strict=True)):
        expected = logits[t, target] - logits[t, row or slice(None)].logsumexp(0)
        assert output["logprobs"]["data"][t] == pytest.approx(float(expected), abs=1e-4)


def test_entropies_are_over_the_rows_too(trainer, logits):
    inputs = {"logprobs": [-2.0] * 5, "advantages": [0.0] * 5, "sampling_mask": MASKS["jagged"]}
    given = types.Datum(types.ModelInput.from_ints(TOKENS[:-1]), {"target_tokens": TOKENS[1:], **inputs})
    config = {"temperature": TEMPERATURE, "entropy_coeff": 0.5}
    metrics = trainer.forward_backward([given], "importance_sampling", loss_fn_config=config)["result"]["metrics"]
    rows = [logits[t, row or slice(None)].log_softmax(0) for t, row in enumerate(MASKS["jagged"])]
    total = sum(float(-(row.exp() * row).sum()) for row in rows)
    assert metrics["entropy:sum"] == pytest.approx(total, rel=1e-4)
    assert math.log(3) < total < 5 * math.log(VOCABULARY)
    assert metrics["loss"] == pytest.approx(-0.5 * total, rel=1e-4)


def test_what_was_the_only_token_left_teaches_nothing(trainer):
    rows = [[token] for token in TOKENS[1:]]
    result = trainer.forward_backward([masked(rows)], "cross_entropy")
    assert result["result"]["loss_fn_outputs"][0]["logprobs"]["data"] == [0.0] * 5
    assert trainer.optim_step(types.AdamParams())["metrics"]["grad_norm"] == 0


@pytest.mark.parametrize("name", MASKS)
def test_a_custom_loss_has_the_gradient_of_the_built_in_one(service, name):
    def weighted(data, logprobs):
        return -(logprobs[0] * data[0].loss_fn_inputs["weights"]).sum(), {}

    config, norms = {"temperature": TEMPERATURE}, []
    for train in (
        lambda one: one.forward_backward([masked(MASKS[name])], "cross_entropy", loss_fn_config=config),
        lambda one: one.forward_backward_custom([masked(MASKS[name])], weighted, loss_fn_config=config),
        lambda one: one.forward_backward([datum(TOKENS, weights=WEIGHTS)], "cross_entropy", loss_fn_config=config),
    ):
        trainer = new_model(service)
        train(trainer)
        norms.append(trainer.optim_step(types.AdamParams(grad_clip_norm=0.0))["metrics"]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert (norms[2] == pytest.approx(norms[0], rel=1e-4)) == (name == "nothing left out")


def test_the_binary_transport_and_this_process_find_the_same_numbers(local, server):
    found = []
    for where in ({}, {"base_url": server}, {"base_url": server, "tensor_transport": "http-binary"}):
        with weaver.ServiceClient(**where) as service:
            trainer, data = new_model(service), [masked(mask) for mask in MASKS.values()]
            outputs = trainer.forward_backward(data, "cross_entropy")["result"]["loss_fn_outputs"]
            norm = trainer.optim_step(types.AdamParams())["metrics"]["grad_norm"]
            found.append(([list(one["logprobs"]["data"]) for one in outputs], norm))
    assert found[0] == found[1] == found[2]


WRONG = {
    "too few rows": [[9], [3]],
    "no such token": [[9, 97], [3], [], [], []],
    "a row without its target": [[9], [4, 5], [], [], []],
    "fractions": [[9.5], [3, 4], [], [], []],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_refusal_is_the_same_in_both_places(name, local, server):
    told = []
    for where in ({}, {"base_url": server}):
        with weaver.ServiceClient(**where) as service:
            trainer = new_model(service)
            with pytest.raises(weaver.WeaverAPIError) as caught:
                trainer.forward_backward([masked(WRONG[name])], "cross_entropy")
            told.append((caught.value.status_code, caught.value.code, caught.value.message))
            assert trainer.optim_step(types.AdamParams())["metrics"]["grad_norm"] == 0
    assert told[0] == told[1]
    assert told[0][:2] == (400, "invalid_request")
    assert told[0][2].startswith("data[0].loss_fn_inputs['sampling_mask']")
