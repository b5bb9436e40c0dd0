"""`check_loss` holds for what weaver ships, and notices each way to break the contract."""

import numpy as np
import pytest
import torch

from weaver.domain import Datum
from weaver.errors import PluginBroken
from weaver.loss import ENTROPY_COEFF, TEMPERATURE, ConfigField, Loss, LossInput, LossOutput, OutputField
from weaver.plugins.losses import weaver_losses
from weaver.testing import check_loss

SHIPPED = [loss for loss in weaver_losses() if loss.from_graph is None]
STOPS = {"cispo", "gspo", "stable_reinforce", "truncated_importance_sampling"}
WEIGHTS = LossInput("weights")


@pytest.mark.parametrize("loss", SHIPPED, ids=lambda loss: loss.name)
def test_a_loss_that_weaver_ships_keeps_the_contract(loss):
    check_loss(loss, stops_gradients=loss.name in STOPS)


@pytest.mark.parametrize("loss", [loss for loss in SHIPPED if loss.name in STOPS], ids=lambda loss: loss.name)
def test_a_gradient_that_is_not_the_derivative_is_noticed(loss):
    with pytest.raises(AssertionError, match=r"its gradient is not the derivative of its value. If it stops"):
        check_loss(loss)


def right(logprobs, inputs, config):
    return -(logprobs * inputs["weights"]).sum()


def damaging_the_input(logprobs, inputs, config):
    inputs["weights"].mul_(2)
    return right(logprobs, inputs, config)


def damaging_the_logprobs(logprobs, inputs, config):
    if not logprobs.requires_grad:
        logprobs.add_(1)
    return right(logprobs, inputs, config)


def adding_an_input(logprobs, inputs, config):
    inputs["mine"] = logprobs
    return right(logprobs, {"weights": inputs["weights"]}, config)


def changing_its_config(logprobs, inputs, config):
    config["scale"] = 3.0
    return right(logprobs, inputs, config)


def averaging_over_calls(logprobs, inputs, config):
    averaging_over_calls.calls = getattr(averaging_over_calls, "calls", 0) + 1
    return right(logprobs, inputs, config) / averaging_over_calls.calls


def other_without_gradient(logprobs, inputs, config):
    return right(logprobs, inputs, config) * (1 if logprobs.requires_grad else 2)


def in_half_precision(logprobs, inputs, config):
    lp = logprobs.half() if logprobs.dtype == torch.float32 else logprobs
    return (lp * inputs["weights"].to(lp.dtype)).float().square().sum().to(logprobs.dtype)


def assuming_float32(logprobs, inputs, config):
    return (logprobs.float().exp() * inputs["weights"]).sum().to(logprobs.dtype)


def raising_for_one_token(logprobs, inputs, config):
    return right(logprobs, inputs, config) + 0 * logprobs[1]


def a_vector(logprobs, inputs, config):
    return logprobs * inputs["weights"]


def no_gradient(logprobs, inputs, config):
    return right(logprobs.detach(), inputs, config)


BROKEN = {
    damaging_the_input: "changes the input 'weights' of data",
    damaging_the_logprobs: "changes the logprobs of data|gives another value where no gradient",
    adding_an_input: "changes the inputs of data",
    changing_its_config: "changes its config",
    averaging_over_calls: "it keeps a state",
    other_without_gradient: "gives another value where no gradient is asked for",
    in_half_precision: "has another gradient in float32 than in float64",
    assuming_float32: "its gradient is not the derivative of its value",
    raising_for_one_token: r"failed on data\[1\]: IndexError",
    a_vector: r"it returned \(5,\), not a scalar",
    no_gradient: "it has no gradient",
}


@pytest.mark.parametrize("function", BROKEN, ids=lambda function: function.__name__)
def test_a_broken_loss_is_told_how(function):
    config = (ConfigField("scale", 1.0),)
    with pytest.raises(AssertionError, match=BROKEN[function]):
        check_loss(Loss("broken", function, (WEIGHTS,), config))


def test_the_right_one_beside_them_passes():
    check_loss(Loss("right", right, (WEIGHTS,)))


def test_an_output_of_another_shape_than_declared_is_noticed():
    def telling(logprobs, inputs, config):
        return LossOutput(-logprobs.sum(), outputs={"first": logprobs[:1]})

    check_loss(Loss("telling", telling, outputs=(OutputField("first", "scalar"),), target_ranks=(1,)))
    with pytest.raises(AssertionError, match="its output 'first' has shape"):
        check_loss(Loss("telling", telling, outputs=(OutputField("first", "token"),)))
    with pytest.raises(AssertionError, match=r"it returned the outputs \['first'\]; declared are \[\]"):
        check_loss(Loss("telling", telling))


def test_an_optional_input_is_left_out_too():
    with pytest.raises(AssertionError, match="KeyError: 'weights'"):
        check_loss(Loss("careless", right, (LossInput("weights", optional=True),)))


def entropic(logprobs, inputs, config):
    loss = right(logprobs, inputs, config)
    return loss - config["entropy_coeff"] * inputs["entropy"].sum() if "entropy" in inputs else loss


def needing_entropies(logprobs, inputs, config):
    return right(logprobs, inputs, config) - config["entropy_coeff"] * inputs["entropy"].sum()


def damaging_the_entropies(logprobs, inputs, config):
    if "entropy" in inputs and not inputs["entropy"].requires_grad:
        inputs["entropy"].mul_(2)
    return entropic(logprobs, inputs, config)


def with_entropies_in_half_precision(logprobs, inputs, config):
    if "entropy" not in inputs:
        return right(logprobs, inputs, config)
    entropy = inputs["entropy"].half() if logprobs.dtype == torch.float32 else inputs["entropy"]
    return right(logprobs, inputs, config) - entropy.square().sum().to(logprobs.dtype)


def detaching_the_entropies(logprobs, inputs, config):
    return entropic(logprobs, {name: array.detach() for name, array in inputs.items()}, config)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (needing_entropies, "KeyError: 'entropy'"),
        (damaging_the_entropies, "gives another value where no gradient is asked for"),
        (with_entropies_in_half_precision, r"another gradient in float32 than in float64 for data\[0\] by entropy"),
        (detaching_the_entropies, "its gradient is not the derivative of its value"),
    ],
)
def test_a_loss_is_checked_with_entropies_and_without(function, message):
    check_loss(Loss("right", entropic, (WEIGHTS,), (ENTROPY_COEFF,)))
    with pytest.raises(AssertionError, match=message):
        check_loss(Loss("broken", function, (WEIGHTS,), (ENTROPY_COEFF,)))


def two_spellings(logprobs, inputs, config):
    return -(logprobs * (inputs["a"] if "a" in inputs else inputs["b"])).sum()


def test_each_spelling_is_tried():
    inputs = (LossInput("a"), LossInput("b"))
    check_loss(Loss("either", two_spellings, inputs, spellings=(("a",), ("b",))))
    with pytest.raises(AssertionError, match="KeyError: 'a'"):
        check_loss(Loss("one", lambda lp, given, _: (lp * given["a"]).sum(), inputs, spellings=(("a",), ("b",))))


def test_a_loss_without_a_gradient_may_stop_it():
    check_loss(Loss("told", no_gradient, (WEIGHTS,), forward_only=True))


def preferences(logprobs, inputs, config):
    sums = torch.stack([lp.sum() for lp in logprobs])
    return -torch.nn.functional.logsigmoid(config["beta"] * (sums[::2] - sums[1::2])).sum()


def test_a_loss_that_sees_the_batch_is_checked_as_one():
    check_loss(Loss("preferences", preferences, config=(ConfigField("beta", 0.1),), batch=True))
    with pytest.raises(AssertionError, match="failed on the batch"):
        check_loss(Loss("preferences", right, (WEIGHTS,), batch=True))


def test_data_of_ones_own_are_used():
    seen = []

    def function(logprobs, inputs, config):
        seen.append(len(logprobs))
        return -logprobs.sum()

    datum = Datum(np.array([3, 4]), {"target_tokens": np.array([4, 5])})
    check_loss(Loss("mine", function), data=[datum])
    assert set(seen) == {2}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda: Loss("x", right, (WEIGHTS, WEIGHTS)), "declares 'weights' twice among its inputs"),
        (
            lambda: Loss("x", right, outputs=(OutputField("logprobs"),)),
            "declares 'logprobs' twice among its outputs",
        ),
        (lambda: Loss("x", right, config=(ConfigField("b", 2.0, maximum=1.0),)), "the default 2.0, but takes finite"),
        (lambda: Loss("x", right, config=(ConfigField("b", "c", type="text"),)), "the default 'c', but takes one of"),
        (lambda: Loss("x", right, config=(ConfigField("b", 0.0, above=0.0),)), "takes finite values above 0"),
        (
            lambda: Loss("x", right, config=(ConfigField("b", 1.0, optional=True),)),
            r"config\['b'\] optional with a def",
        ),
        (
            lambda: Loss("x", right, config=(TEMPERATURE, ConfigField("heat", 1.0, above=0.0, role="temperature"))),
            "two config fields of the role 'temperature': 'temperature' and 'heat'",
        ),
        (
            lambda: Loss("x", right, config=(ConfigField("heat", 1.0, role="temperature"),)),
            r"config\['heat'\] of the role 'temperature', but takes values that are not above 0",
        ),
        (
            lambda: Loss("x", right, config=(ConfigField("c", "a", type="text", choices=("a",), role="entropy"),)),
            r"config\['c'\] of the role 'entropy', but as text",
        ),
        (lambda: Loss("x", right, (LossInput("entropy"),), (ENTROPY_COEFF,)), "declares 'entropy' twice among its inp"),
        (lambda: Loss("x", right, (WEIGHTS,), spellings=(("a",),)), "has 'a' in a spelling, but not among its inputs"),
        (
            lambda: Loss("x", right, (WEIGHTS,), spellings=(("weights",), ("weights",))),
            "declares 'weights' twice among its spellings",
        ),
    ],
)
def test_a_record_that_contradicts_itself_cannot_be_made(record, message):
    with pytest.raises(PluginBroken, match=message):
        record()
