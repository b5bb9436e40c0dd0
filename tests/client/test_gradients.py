"""Losses that the client computes have the gradients of the same losses computed by the service."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import weaver

from .conftest import datum, new_model

types = weaver.types
FIRST, SECOND = [5, 9, 3, 7, 2, 8, 4], [11, 3, 3, 90]
WEIGHTS = ([1.0, 0.0, 0.5, 2.0, -1.0, 1.0], [0.25, 1.0, 3.0])
PARAMS = types.AdamParams(learning_rate=1e-2, grad_clip_norm=0.0, weight_decay=0.0)


def weighted():
    return [datum(tokens, weights=weights) for tokens, weights in zip((FIRST, SECOND), WEIGHTS, strict=True)]


def cross_entropy(data, logprobs):
    """The sum that the built-in loss of this name is."""
    loss = -sum((one * asked.loss_fn_inputs["weights"]).sum() for asked, one in zip(data, logprobs, strict=True))
    return loss, {"tokens": sum(len(one) for one in logprobs)}


def drawn():
    made = []
    for tokens, logprobs, advantages in (
        (FIRST, [-4.0, -5.0, -4.5, -3.0, -6.0, -4.0], [0.5] * 3 + [-1.0] * 3),
        (SECOND, [-4.2, -4.1, -5.0], [1.0, 2.0, -0.5]),
    ):
        inputs = {"target_tokens": tokens[1:], "logprobs": logprobs, "advantages": advantages}
        made.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    return made


def importance_sampling(data, logprobs):
    """-Σ exp(logp - q)·A."""
    loss = 0.0
    for asked, one in zip(data, logprobs, strict=True):
        inputs = asked.loss_fn_inputs
        loss = loss - (torch.exp(one - inputs["logprobs"]) * inputs["advantages"]).sum()
    return loss, {}


def trained(service, folder, *passes):
    """The step's gradient norm, and the weights after passes that a function each makes of the model's client."""
    trainer = new_model(service)
    answers = [one(trainer) for one in passes]
    norm = trainer.optim_step(PARAMS)["metrics"]["grad_norm"]
    artifact = trainer.export_weights()
    service.download_weights(artifact, folder / trainer.model_id)
    return norm, load_file(folder / trainer.model_id / "adapter_model.safetensors"), answers


def check_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, weights in one[1].items():
        np.testing.assert_allclose(weights, other[1][name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("data", "name", "function"),
    [
        (weighted, "cross_entropy", cross_entropy),
        (drawn, "importance_sampling", importance_sampling),
    ],
    ids=["cross_entropy", "importance_sampling"],
)
def test_a_custom_loss_has_the_gradient_of_its_built_in_twin(service, tmp_path, data, name, function):
    built_in = trained(service, tmp_path, lambda trainer: trainer.forward_backward(data(), name))
    custom = trained(service, tmp_path, lambda trainer: trainer.forward_backward_custom(data(), function))
    check_same(built_in, custom)
    told = custom[2][0]
    assert float(told["loss"]) == pytest.approx(built_in[2][0]["result"]["metrics"]["loss"], rel=1e-5)
    assert not told["loss"].requires_grad


def test_gradients_of_both_kinds_add_up(service, tmp_path):
    """Adam's step hides a factor; a sum of two gradients does not."""
    one, other = weighted()
    built_in = trained(service, tmp_path, lambda trainer: trainer.forward_backward([one, other], "cross_entropy"))
    mixed = trained(
        service,
        tmp_path,
        lambda trainer: trainer.forward_backward([one], "cross_entropy"),
        lambda trainer: trainer.forward_backward_custom([other], cross_entropy),
    )
    check_same(built_in, mixed)


def test_data_that_a_custom_loss_leaves_out_add_nothing(service, tmp_path):
    one, other = weighted()
    built_in = trained(service, tmp_path, lambda trainer: trainer.forward_backward([one], "cross_entropy"))
    half = trained(
        service,
        tmp_path,
        lambda trainer: trainer.forward_backward_custom(
            [one, other], lambda data, logprobs: cross_entropy(data[:1], logprobs[:1])
        ),
    )
    check_same(built_in, half)


def test_a_custom_loss_sees_tempered_logprobs(trainer):
    seen = {}

    def loss(data, logprobs):
        seen[len(seen)] = [one.detach().tolist() for one in logprobs]
        return sum(one.sum() for one in logprobs), {}

    trainer.forward_backward_custom(weighted(), loss)
    trainer.forward_backward_custom(weighted(), loss, loss_fn_config={"temperature": 2.0})
    plain = trainer.forward(weighted(), "forward_logprob")["result"]["loss_fn_outputs"]
    tempered = trainer.forward(weighted(), "forward_logprob", {"temperature": 2.0})["result"]["loss_fn_outputs"]
    assert seen[0] == [output["logprobs"]["data"] for output in plain]
    assert seen[1] == [output["logprobs"]["data"] for output in tempered]
    assert seen[0] != seen[1]


def test_a_custom_loss_needs_to_be_told_the_targets(trainer):
    bare = types.Datum(model_input=types.ModelInput.from_ints(FIRST))
    with pytest.raises(weaver.WeaverAPIError, match="target_tokens") as caught:
        trainer.forward_backward_custom([bare], lambda data, logprobs: (logprobs[0].sum(), {}))
    assert caught.value.status_code == 400


def fails(data, logprobs):
    raise ArithmeticError("no")


def test_a_custom_loss_that_fails_says_so_and_adds_nothing(trainer):
    data = weighted()
    with pytest.raises(RuntimeError, match=r"^User loss_fn failed: no$"):
        trainer.forward_backward_custom(data, fails)
    with pytest.raises(ValueError, match=r"^loss_fn must return a scalar loss, got shape \(6,\)$"):
        trainer.forward_backward_custom(data, lambda data, logprobs: (logprobs[0], {}))
    with pytest.raises(ValueError, match="depends on the logprobs"):
        trainer.forward_backward_custom(data, lambda data, logprobs: (torch.tensor(1.0), {}))
    assert trainer.optim_step(PARAMS)["metrics"].get("grad_norm", 0.0) == 0.0
