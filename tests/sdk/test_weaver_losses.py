"""What Weaver's API has of losses beyond Tinker's, through the vendor's SDK: temperature, entropy, further names.

The formulas themselves are compared in `backends/weaver_peft/tests/test_formulas.py`.
"""

import json
import math
import urllib.request

import numpy as np
import pytest
import tinker

NUMBERS = {"logprobs": (-6.0, -2.0), "advantages": (-1.0, 1.0)}
MASKED = {**NUMBERS, "loss_mask": (0.0, 1.0)}
WEIGHTED = {"weights": (0.0, 1.0), "importance_weights": (-2.0, 2.0)}


def logprobs_of(output):
    return [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_at_the_samplers_temperature_the_trainers_logprobs_are_the_samplers(trained, temperature):
    client, prompt = trained(), [5, 6, 7, 8]
    sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=12, temperature=temperature, stop=[], seed=3)
    [drawn] = sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params).result().sequences
    tokens = [*prompt, *drawn.tokens]
    targets = tinker.TensorData.from_numpy(np.array(tokens[1:]))
    inputs = tinker.ModelInput.from_ints(tokens[:-1])
    datum = tinker.Datum(model_input=inputs, loss_fn_inputs={"target_tokens": targets})
    [found] = logprobs_of(client.forward([datum], "forward_logprob", {"temperature": temperature}).result())
    np.testing.assert_allclose(found[len(prompt) - 1 :], drawn.logprobs, atol=1e-4)


def test_a_temperature_of_one_changes_nothing(trained, measured, data, assert_same_gradients):
    client, batch = trained(), data.supervised(9, 20)
    plain = client.forward_backward(batch, "cross_entropy").result()
    expected = measured(client)
    named = client.forward_backward(batch, "cross_entropy", {"temperature": 1.0}).result()
    assert named.metrics == plain.metrics
    assert_same_gradients(measured(client), expected, tolerance=1e-6)


def test_a_pass_as_nexrl_sends_it_tells_the_entropy(trained, data):
    client, batch = trained(), [data.datum(length, **MASKED) for length in (9, 20)]
    plain = client.forward_backward(batch, "importance_sampling").result().metrics
    found = client.forward_backward(batch, "importance_sampling", {"entropy_coeff": 1e-4}).result().metrics
    masks = [datum.loss_fn_inputs["loss_mask"].to_numpy().sum() for datum in batch]
    assert plain.keys() == {"loss:sum"}
    assert found.keys() == {"loss:sum", "entropy:sum", "entropy:mean"}
    assert found["loss:sum"] == pytest.approx(plain["loss:sum"] - 1e-4 * found["entropy:sum"], rel=1e-6)
    assert 0 < found["entropy:mean"] < math.log(97)
    assert found["entropy:sum"] < sum(masks) * math.log(97)


def test_an_entropy_that_counts_is_higher_afterwards(trained, data):
    client, batch, config = trained(), [data.datum(20, **MASKED)], {"entropy_coeff": 100.0}
    before = client.forward_backward(batch, "importance_sampling", config).result().metrics["entropy:mean"]
    client.optim_step(tinker.AdamParams(learning_rate=0.01)).result()
    after = client.forward(batch, "importance_sampling", config).result().metrics["entropy:mean"]
    assert after > before + 0.05


def test_surrogate_has_the_opposite_sign_of_cross_entropy(trained, measured, data, assert_same_gradients):
    client = trained()
    batch = [data.datum(length, surrogate_weights=(-1.5, 2.0), weights=(0.0, 1.0)) for length in (9, 20)]
    value = client.forward_backward(batch, "surrogate").result().metrics["loss:sum"]
    found = measured(client)
    opposite = []
    for datum in batch:
        weights = tinker.TensorData.from_numpy(-datum.loss_fn_inputs["surrogate_weights"].to_numpy())
        inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"], "weights": weights}
        opposite.append(tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs))
    assert value == pytest.approx(client.forward_backward(opposite, "cross_entropy").result().metrics["loss:sum"])
    assert_same_gradients(found, measured(client), tolerance=1e-5)


def test_an_endless_bound_makes_truncated_importance_sampling_plain(trained, measured, data, assert_same_gradients):
    client, batch = trained(), [data.datum(length, **MASKED) for length in (9, 20)]
    plain = client.forward_backward(batch, "importance_sampling").result().metrics["loss:sum"]
    expected = measured(client)
    config = {"truncation_bound": 1e30}
    truncated = client.forward_backward(batch, "truncated_importance_sampling", config).result().metrics["loss:sum"]
    assert truncated == pytest.approx(plain, rel=1e-6)
    assert_same_gradients(measured(client), expected, tolerance=1e-5)


TEMPERATURES = [(0.0, "0.0"), (-1.0, "-1.0"), (math.nan, "nan"), (math.inf, "inf")]


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo", "forward_logprob", "surrogate"])
@pytest.mark.parametrize(("temperature", "shown"), TEMPERATURES)
def test_a_temperature_that_divides_nothing_is_refused_by_name(trained, data, loss, temperature, shown):
    message = rf"loss_fn_config\['temperature'\] is {shown}; the loss '{loss}' takes finite values above 0"
    with pytest.raises(tinker.BadRequestError, match=message):
        trained().forward([data.datum(4)], loss, {"temperature": temperature}).result()


REFUSED = {
    "no such setting": (
        ("cross_entropy", {"weights": (0.0, 1.0)}, {"aggregation": 1.0}),
        r"loss_fn_config\['aggregation'\] is not read by the loss 'cross_entropy': it reads temperature",
    ),
    "two spellings": (
        ("importance_sampling", {**NUMBERS, "weights": (0.0, 1.0)}, {}),
        r"data\[0\].loss_fn_inputs has 'logprobs' beside 'weights'; the loss 'importance_sampling' reads either "
        r"logprobs and advantages and loss_mask, or weights and importance_weights. Leave those of one set out",
    ),
    "a mask in the other spelling": (
        ("importance_sampling", {**WEIGHTED, "loss_mask": (0.0, 1.0)}, {}),
        r"data\[0\].loss_fn_inputs has 'loss_mask' beside 'weights'",
    ),
    "half of Tinker's spelling": (
        ("importance_sampling", {"logprobs": (-6.0, -2.0)}, {}),
        r"data\[0\].loss_fn_inputs lacks 'advantages', which the loss 'importance_sampling' reads",
    ),
    "half of Weaver's spelling": (
        ("importance_sampling", {"weights": (0.0, 1.0)}, {}),
        r"data\[0\].loss_fn_inputs lacks 'importance_weights', which the loss 'importance_sampling' reads",
    ),
    "nothing": (
        ("importance_sampling", {}, {}),
        r"data\[0\].loss_fn_inputs lacks 'logprobs', which the loss 'importance_sampling' reads",
    ),
    "no bound": (
        ("truncated_importance_sampling", NUMBERS, {"truncation_bound": 0.0}),
        r"loss_fn_config\['truncation_bound'\] is 0.0; .* takes finite values above 0",
    ),
    "a weightless surrogate": (
        ("surrogate", {"weights": (0.0, 1.0)}, {}),
        r"data\[0\].loss_fn_inputs lacks 'surrogate_weights', which the loss 'surrogate' reads",
    ),
    "no gradient": (
        ("forward_logprob", {}, {}),
        r"loss_fn: the loss 'forward_logprob' has no gradient; ask for it by forward, and for gradients by another",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_contradicts_itself_is_refused_by_name(trained, data, what):
    (loss, ranges, config), message = REFUSED[what]
    with pytest.raises(tinker.BadRequestError, match=message):
        trained().forward_backward([data.datum(4, **ranges)], loss, config).result()


def test_a_bound_of_weights_that_are_not_there_fails_by_name(trained, data):
    client, message = trained(), r"loss_fn_config\['clip_ratio'\] bounds 'importance_weights', and the datum has"
    with pytest.raises(tinker.RequestFailedError, match=message):
        client.forward_backward([data.datum(4, **NUMBERS)], "importance_sampling", {"clip_ratio": 1.0}).result()
    client.forward_backward([data.datum(4, **WEIGHTED)], "importance_sampling", {"clip_ratio": 1.0}).result()


def test_entropies_of_several_targets_per_token_fail_by_name(trained, data):
    batch, config = [data.datum(4, targets=3, **NUMBERS)], {"entropy_coeff": 0.1}
    with pytest.raises(tinker.RequestFailedError, match=r"'entropy_coeff'\] needs target_tokens of shape \(T,\)"):
        trained().forward_backward(batch, "importance_sampling", config).result()


@pytest.mark.parametrize("loss", ["cross_entropy", "forward_logprob"])
def test_a_sampling_mask_is_refused_by_name_for_this_protocol_has_no_rows(trained, data, loss):
    """Also by a loss that carries along what it does not read."""
    batch, message = (
        [data.datum(4, targets=2, weights=(0.0, 1.0), sampling_mask=(0.0, 1.0))],
        r"an array; a sampling mask is",
    )
    with pytest.raises(tinker.BadRequestError, match=rf"data\[0\].loss_fn_inputs\['sampling_mask'\] is {message}"):
        trained().forward(batch, loss).result()


def test_the_records_tell_roles_spellings_and_what_has_no_gradient(server):
    with urllib.request.urlopen(f"{server.url}/api/v1/losses") as answer:
        told = {one["name"]: one for one in json.load(answer)["losses"]}
    added = {"truncated_importance_sampling", "ppo_clip", "forward_logprob", "surrogate"}
    assert added <= told.keys()
    assert {name for name, one in told.items() if one["forward_only"]} == {"forward_logprob"}
    assert {name for name, one in told.items() if one["carries_other_inputs"]} == {"forward_logprob", "surrogate"}
    assert {name for name, one in told.items() if not one["sampling_masks"]} == {"custom"}
    sampling = told["importance_sampling"]
    assert sampling["spellings"] == [["logprobs", "advantages", "loss_mask"], ["weights", "importance_weights"]]
    config = {field["name"]: field for field in sampling["config"]}
    temperature = config["temperature"]
    assert (temperature["role"], temperature["above"], temperature["default"]) == ("temperature", 0.0, 1.0)
    assert (config["entropy_coeff"]["role"], config["entropy_coeff"]["default"]) == ("entropy", 0.0)
    assert (config["clip_ratio"]["required"], config["clip_ratio"]["default"]) == (False, None)
    assert config["clip_ratio"]["role"] is None
