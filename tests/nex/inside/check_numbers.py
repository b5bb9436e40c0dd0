"""Numbers: the same by both transports, by custom losses and the built-in ones, and, outside, by Tinker's SDK."""

import asyncio

import pytest
import torch
from support import TINY, adam, logprobs_of, sentence
from weaver.training_outputs import align_training_outputs

from weaver import AsyncServiceClient, ServiceClient, WeaverAPIError, attach_loss_fn_outputs, types

LORA = types.LoraConfig(rank=8, seed=5)
FIRST, SECOND = [5, 6, 7, 8, 9, 10], [20, 21, 22, 23]
WEIGHTS = [[0.5, 1.0, -1.0, 2.0, 0.25], [1.0, 1.0, 3.0]]


def data():
    return [sentence(tokens, weights) for tokens, weights in zip((FIRST, SECOND), WEIGHTS, strict=True)]


def model(service):
    return service.create_model(base_model=TINY, lora_config=LORA)


def trained(client, passes, steps=3, **adam_params):
    """Logprobs and norms on the way: `passes(client)` computes one pass's logprobs."""
    found = {"logprobs": [], "grad_norms": []}
    for _ in range(steps):
        found["logprobs"].append(passes(client))
        found["grad_norms"].append(client.optim_step(adam(0.05, **adam_params))["metrics"]["grad_norm"])
    return found


def flat(value):
    """All numbers in nested lists and mappings, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [number for one in value for number in flat(one)] if isinstance(value, list) else [value]


def cross_entropy(client):
    return logprobs_of(client.forward_backward(data(), "cross_entropy"))


def test_cross_entropy_with_the_sdks_own_adam(service, numbers):
    numbers["cross_entropy"] = trained(model(service), cross_entropy)


def test_every_number_of_adam_is_honoured(service, numbers):
    first = flat(numbers["cross_entropy"]["logprobs"][-1])
    others = {"beta1": 0.5, "beta2": 0.5, "eps": 1e-2, "weight_decay": 1.0, "grad_clip_norm": 1e-3}
    for name, value in others.items():
        found = trained(model(service), cross_entropy, **{name: value})
        assert flat(found["logprobs"][-1]) != pytest.approx(first, rel=1e-4), name


def test_a_custom_loss_trains_like_the_built_in_one(service, numbers):
    def weighted(batch, logprobs):
        losses = [-(one * datum.loss_fn_inputs["weights"]).sum() for one, datum in zip(logprobs, batch, strict=True)]
        return torch.stack(losses).sum(), {"count": len(batch)}

    client, found = model(service), {"logprobs": [], "grad_norms": []}
    for _ in range(3):
        found["logprobs"].append(logprobs_of(client.forward(data(), "forward_logprob")))
        result = client.forward_backward_custom(data(), weighted)
        assert result["metrics"] == {"count": 2}
        found["grad_norms"].append(client.optim_step(adam(0.05))["metrics"]["grad_norm"])
    expected = numbers["cross_entropy"]
    assert found["grad_norms"] == pytest.approx(expected["grad_norms"], rel=1e-4)
    for mine, theirs in zip(found["logprobs"], expected["logprobs"], strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_a_custom_loss_that_is_no_sum_falls(service, numbers):
    """Variance of the logprobs: what the surrogate's weights are changes from step to step."""

    def spread(batch, logprobs):
        return torch.cat(logprobs).var(), {}

    client = model(service)
    values, norms = [], []
    for _ in range(6):
        values.append(float(client.forward_backward_custom(data(), spread)["loss"]))
        norms.append(client.optim_step(adam(0.02, weight_decay=0.0))["metrics"]["grad_norm"])
    numbers["variance"] = {"values": values, "grad_norms": norms}
    assert values[-1] < values[0] / 2


def test_the_policy_losses(service, numbers):
    sampled = [[-1.0, -2.0, -0.5, -3.0, -1.5], [-2.0, -2.5, -1.0]]
    advantages = [[1.0, -1.0, 0.5, 0.0, 2.0], [-0.5, 1.0, 1.0]]
    batch = [
        types.Datum.from_raw(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={"target_tokens": tokens[1:], "logprobs": lp, "advantages": adv, "loss_mask": [1] * len(lp)},
        )
        for tokens, lp, adv in zip((FIRST, SECOND), sampled, advantages, strict=True)
    ]
    for loss in ("importance_sampling", "truncated_importance_sampling", "ppo_clip"):
        client = model(service)
        result = client.forward_backward(batch, loss)
        norm = client.optim_step(adam(0.05))["metrics"]["grad_norm"]
        numbers[loss] = {
            "logprobs": logprobs_of(result),
            "loss": result["result"]["metrics"]["loss"],
            "grad_norm": norm,
        }


def test_the_documentations_spelling_of_importance_sampling(service):
    """weights and importance_weights: the gradient is that of cross_entropy with their product."""
    importance = [[1.0, 2.0, 0.5, 1.0, 0.0], [3.0, 1.0, -1.0]]
    products = [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(WEIGHTS, importance, strict=True)]
    spelled = [
        sentence(tokens, weights).with_loss_fn_inputs(importance_weights=more)
        for tokens, weights, more in zip((FIRST, SECOND), WEIGHTS, importance, strict=True)
    ]
    plain = [sentence(tokens, weights) for tokens, weights in zip((FIRST, SECOND), products, strict=True)]
    norms = []
    for batch, loss in ((spelled, "importance_sampling"), (plain, "cross_entropy")):
        client = model(service)
        client.forward_backward(batch, loss)
        norms.append(client.optim_step(adam(0.05))["metrics"]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_losss_temperature_divides_the_logits(service, numbers):
    client = model(service)
    config = {"temperature": 0.5}
    numbers["temperature"] = {
        "tokens": FIRST,
        "forward": logprobs_of(client.forward([sentence(FIRST)], "forward_logprob", config))[0],
        "cross_entropy": logprobs_of(client.forward([sentence(FIRST)], "cross_entropy", config))[0],
        "plain": logprobs_of(client.forward([sentence(FIRST)], "forward_logprob"))[0],
    }
    sampler = client.save_weights_and_get_sampling_client()
    asked = types.LogprobsParams(loss_fn_config=config)
    scored = sampler.compute_logprobs(prompt=types.ModelInput.from_ints(FIRST), logprobs_params=asked)
    assert scored[1:] == pytest.approx(numbers["temperature"]["forward"], abs=1e-4)
    unscaled = sampler.compute_logprobs(prompt=types.ModelInput.from_ints(FIRST))
    assert unscaled[1:] == pytest.approx(numbers["temperature"]["plain"], abs=1e-4)


MASKS = {
    "jagged": [[6, 2, 90], [], [8], [9, 3, 4, 5], [10, 11]],
    "rows of one length": [[6, 2], [7, 3], [8, 4], [9, 5], [10, 6]],
    "nothing left out": [[], [], [], [], []],
}


@pytest.mark.parametrize("name", MASKS)
def test_a_sampling_mask_is_what_probabilities_are_over(service, numbers, name):
    """By both transports, to the last digit; and a custom loss has the gradient of the built-in one."""
    masked = [sentence(FIRST, WEIGHTS[0]).with_loss_fn_inputs(sampling_mask=MASKS[name]), data()[1]]
    found = []
    with ServiceClient(heartbeat_interval=0.2, tensor_transport="http-binary") as binary:
        for one in (service, binary):
            client = model(one)
            result = client.forward_backward(masked, "cross_entropy", loss_fn_config={"temperature": 0.7})
            found.append((logprobs_of(result), client.optim_step(adam(0.05))["metrics"]["grad_norm"]))
    assert found[0] == found[1]

    def weighted(batch, logprobs):
        losses = [-(one * datum.loss_fn_inputs["weights"]).sum() for one, datum in zip(logprobs, batch, strict=True)]
        return torch.stack(losses).sum(), {}

    client = model(service)
    client.forward_backward_custom(masked, weighted, loss_fn_config={"temperature": 0.7})
    assert client.optim_step(adam(0.05))["metrics"]["grad_norm"] == pytest.approx(found[0][1], rel=1e-4)
    numbers.setdefault("masks", {})[name] = {"tokens": FIRST, "rows": MASKS[name], "logprobs": found[0][0][0]}


@pytest.mark.parametrize("compression", ["zstd", "raw"])
def test_the_binary_transport_finds_the_same_numbers(service, numbers, compression):
    with ServiceClient(
        heartbeat_interval=0.2, tensor_transport="http-binary", tensor_compression=compression
    ) as binary:
        found = trained(model(binary), cross_entropy)
    assert flat(found) == pytest.approx(flat(numbers["cross_entropy"]), rel=1e-5)


def test_the_async_binary_transport_too(numbers):
    async def run():
        async with AsyncServiceClient(heartbeat_interval=0.2, tensor_transport="http-binary") as service:
            client = await service.create_model(base_model=TINY, lora_config=LORA)
            return logprobs_of(await client.forward_backward(data(), "cross_entropy"))

    assert flat(asyncio.run(run())) == pytest.approx(flat(numbers["cross_entropy"]["logprobs"][0]), rel=1e-5)


def test_a_target_of_minus_100_does_not_count(service):
    tokens = FIRST
    ignored = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": [-100, -100, *tokens[3:]], "weights": [1.0] * 5},
    )
    counted = sentence(tokens, [0.0, 0.0, 1.0, 1.0, 1.0])
    found = []
    for datum in (ignored, counted):
        client = model(service)
        result = client.forward_backward([datum], "cross_entropy")
        norm = client.optim_step(adam(0.05))["metrics"]["grad_norm"]
        found.append((result["result"]["metrics"]["loss"], norm, logprobs_of(result)[0]))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5)
    assert found[0][2][:2] == [0.0, 0.0]
    assert found[0][2][2:] == pytest.approx(found[1][2][2:], abs=1e-5)


def test_a_custom_loss_ignores_what_minus_100_says(service):
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(FIRST[:-1]), loss_fn_inputs={"target_tokens": [-100, *FIRST[2:]]}
    )
    client = model(service)
    result = client.forward([datum], "forward_logprob")
    assert logprobs_of(result)[0][0] == 0.0
    assert result["result"]["metrics"]["loss"] == pytest.approx(-sum(logprobs_of(result)[0]), rel=1e-5)
    client.forward_backward_custom([datum], lambda _, logprobs: (-logprobs[0].sum(), {}))
    norm = client.optim_step(adam(0.05))["metrics"]["grad_norm"]
    other = model(service)
    other.forward_backward([sentence(FIRST, [0.0, 1.0, 1.0, 1.0, 1.0])], "cross_entropy")
    assert norm == pytest.approx(other.optim_step(adam(0.05))["metrics"]["grad_norm"], rel=1e-4)


def test_outputs_carry_the_ids_of_their_data_and_can_be_attached(service):
    client = model(service)
    named = [types.Datum(model_input=one.model_input, loss_fn_inputs=one.loss_fn_inputs, datum_id=f"d{number}")
             for number, one in enumerate(data())]  # fmt: skip
    result = client.forward(named, "cross_entropy")
    assert [one["datum_id"] for one in align_training_outputs(named, result)] == ["d0", "d1"]
    attached = attach_loss_fn_outputs(named, result, field_map={"logprobs": "old_logprobs"})
    assert attached[0].loss_fn_inputs["old_logprobs"].tolist() == pytest.approx(logprobs_of(result)[0])


def test_whole_numbers_count_as_weights(service):
    """`weights=[0, 1, 1]` goes over the wire as int64."""
    whole = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0, 1, 1]},
    )
    result = model(service).forward([whole], "cross_entropy")
    assert result["result"]["metrics"]["loss"] == pytest.approx(-sum(logprobs_of(result)[0][1:]), rel=1e-5)


def test_a_refused_pass_changes_nothing_and_the_next_ones_run(service):
    client = model(service)
    bad = sentence(FIRST).with_loss_fn_inputs(sampling_mask=[[6, 2], [3]])
    with pytest.raises(WeaverAPIError, match=r"data\[0\].loss_fn_inputs\['sampling_mask'\] has 2 rows") as refused:
        client.forward_backward([bad], "cross_entropy")
    assert (refused.value.status_code, refused.value.code) == (400, "invalid_request")
    routed = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6]), loss_fn_inputs={"target_tokens": [6, 7]},
        metadata={"router_replay": {"mode": "R3"}},
    )  # fmt: skip
    with pytest.raises(WeaverAPIError, match="router replay"):
        client.forward_backward([routed], "cross_entropy")
    with pytest.raises(WeaverAPIError, match="temprature"):
        client.forward_backward(data(), "cross_entropy", loss_fn_config={"temprature": 1.0})
    with pytest.raises(WeaverAPIError, match="enable_debug_dump"):
        client.forward_backward(data(), "cross_entropy", loss_fn_config={"enable_debug_dump": True})
    assert client.optim_step(adam(0.05))["metrics"]["grad_norm"] == 0
    client.forward_backward(data(), "cross_entropy")
    assert client.optim_step(adam(0.05))["metrics"]["grad_norm"] > 0
