"""Custom losses that run on the server, against the same functions on the client's own path."""

import numpy as np
import pytest
import tinker
import torch
import torch.nn.functional as F

LLAMA = "tiny/llama"
POLICY = {"logprobs": (-6.0, -2.0), "advantages": (-1.0, 1.0)}
CLIP = (0.7, 1.4)


def squares(logprobs):
    loss = (logprobs**2).sum()
    return loss, {"custom/squares:sum": loss, "custom/largest:mean": logprobs.max()}


def weighted(logprobs, weights):
    return -(logprobs * weights).sum(), {}


def ppo_with_a_pull(logprobs, advantages, mask):
    ratio = torch.exp(logprobs - logprobs.detach() + 0.3 * mask)
    clipped = torch.clamp(ratio, *CLIP)
    policy = -torch.min(ratio * advantages, clipped * advantages)[mask > 0].sum()
    k3 = torch.expm1(-logprobs) + logprobs
    masked = torch.where(mask > 0, k3, torch.zeros_like(k3)).sum() / mask.sum().clamp(min=1)
    return policy + 0.01 * masked, {"custom/k3:mean": masked, "custom/policy:sum": policy}


def sequence_level(logprobs, advantages, temperature):
    n = logprobs.shape[0]
    score = logprobs.mean() / temperature
    positions = torch.arange(n, dtype=torch.float32) / n
    steps = torch.cumsum(logprobs, dim=0)[..., None].squeeze(-1).flip(0)
    loss = F.softplus(-score) + F.smooth_l1_loss(steps * 0.01, positions) - (advantages[1:] * logprobs[:-1]).sum()
    return loss, {"custom/sequence/score:mean": score}


def pairwise(logprobs, advantages):
    better = (advantages[:, None] > advantages[None, :]).to(torch.float32)
    return -(F.logsigmoid(logprobs[:, None] - logprobs[None, :]) * better).sum() / better.sum(), {}


def over_targets(logprobs, targets, advantages):
    probabilities = logprobs.softmax(dim=-1)
    best, place = torch.max(logprobs, dim=1)
    picked = torch.gather(logprobs, 1, place.unsqueeze(1)).squeeze(1)
    entropy = -(probabilities * torch.log(probabilities + 1e-9)).sum(dim=1)
    loss = (targets * logprobs).sum() + (advantages * best).sum() + picked.logsumexp(0) - 0.1 * entropy.mean()
    return loss, {"custom/entropy:mean": entropy.mean()}


ONE = {"logprobs": 1, "advantages": 1}
CASES = {
    "squares": (squares, {"logprobs": 1}),
    "weighted": (weighted, {"logprobs": 1, "weights": 1}),
    "ppo with a pull": (ppo_with_a_pull, ONE | {"mask": 1}),
    "sequence level": (sequence_level, ONE | {"temperature": 0}),
    "pairwise": (pairwise, ONE),
    "over targets": (over_targets, {"logprobs": 2, "targets": 2, "advantages": 1}),
}


def batch_for(data, ranks):
    """Data with what any of the losses reads, and more: `carried` is read by none."""
    return [_datum(data, length, 3 if ranks["logprobs"] == 2 else None) for length in (13, 2, 40, 7)]


def _datum(data, length, targets):
    datum = data.datum(length, targets, weights=(-1.5, 2.0))
    inputs = dict(datum.loss_fn_inputs)
    inputs["advantages"] = tinker.TensorData.from_numpy(data.rng.normal(size=length).astype(np.float32))
    inputs["mask"] = tinker.TensorData.from_numpy(np.arange(length, dtype=np.int64) % 3)
    inputs["temperature"] = tinker.TensorData(data=[0.7], dtype="float32", shape=[])
    inputs["targets"] = tinker.TensorData.from_numpy(data.rng.normal(size=(length, 3)).astype(np.float32))
    inputs["carried"] = tinker.TensorData.from_numpy(np.ones(2, np.float32))
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


@pytest.mark.parametrize("case", CASES)
def test_the_server_computes_what_the_client_would(
    service_client, trained, measured, data, assert_same_gradients, case
):
    function, ranks = CASES[case]
    client, batch = trained(), batch_for(data, ranks)
    on_server = service_client.create_custom_loss(function, ranks).result()
    assert on_server.loss_id is not None
    output = client.forward_backward_custom(batch, on_server).result()
    found = measured(client)

    def by_hand(data, logprobs_list):
        losses = [
            function(lp, *(datum.loss_fn_inputs[name].to_torch() for name in list(ranks)[1:]))
            for datum, lp in zip(data, logprobs_list)
        ]
        metrics = {name: [float(one[name]) for _, one in losses] for name in losses[0][1]}
        reduced = {name: sum(v) / (len(v) if name.endswith("mean") else 1) for name, v in metrics.items()}
        return sum(loss for loss, _ in losses), reduced

    expected = client.forward_backward_custom(batch, by_hand).result()
    assert_same_gradients(found, measured(client))
    del expected.metrics["surrogate_loss:sum"]
    assert output.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)
    for one, other in zip(output.loss_fn_outputs, expected.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"].to_numpy(), other["logprobs"].to_numpy(), atol=1e-5)


def test_a_handle_agrees_with_the_sdks_own_run_of_it(service_client, trained, measured, data, assert_same_gradients):
    client, batch = trained(), batch_for(data, ONE)
    handle = service_client.create_custom_loss(ppo_with_a_pull, ONE | {"mask": 1}).result()
    output = client.forward_backward_custom(batch, handle).result()
    found = measured(client)
    local = type(handle)(handle.name, handle.inputs, handle.session_id, handle.graph)
    expected = client.forward_backward_custom(batch, local).result()
    assert_same_gradients(found, measured(client))
    del expected.metrics["surrogate_loss:sum"]
    assert output.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)


def test_it_takes_one_pass_where_the_client_takes_two(server, service_client, trained, data):
    client, batch = trained(), data.supervised(5)
    lane = server.service._base_models.engine(LLAMA)._lanes[client.model_id]
    handle = service_client.create_custom_loss(squares, {"logprobs": 1}).result()
    began = lane._next
    client.forward_backward_custom(batch, handle).result()
    assert lane._next - began == 1
    client.forward_backward_custom(batch, lambda data, logprobs: (logprobs[0].sum(), {})).result()
    assert lane._next - began == 3


def test_another_session_cannot_use_it(server, service_client, data):
    handle = service_client.create_custom_loss(squares, {"logprobs": 1}).result()
    with server.client() as stranger:
        other = stranger.create_lora_training_client(LLAMA, rank=2).result()
        with pytest.raises(tinker.BadRequestError, match="that create_custom_loss made in the same session"):
            other.forward_backward(data.supervised(5), "custom", {"loss_id": handle.loss_id}).result()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"loss_fn_config\['loss_id'\] is None; the loss 'custom' needs the id of one"),
        ({"loss_id": 3.0}, r"loss_fn_config\['loss_id'\] is 3.0"),
        ({"loss_id": "HANDLE", "beta": 1.0}, r"loss_fn_config\['beta'\] is not read by the loss 'custom squares'"),
    ],
)
def test_a_config_that_names_no_loss_is_refused_by_name(service_client, trained, data, config, message):
    client = trained()
    handle = service_client.create_custom_loss(squares, {"logprobs": 1}).result()
    config = config and {key: handle.loss_id if value == "HANDLE" else value for key, value in config.items()}
    with pytest.raises(tinker.BadRequestError, match=message):
        client.forward_backward(data.supervised(5), "custom", config).result()


def test_the_id_of_a_loss_is_not_a_name_of_one(service_client, trained, data):
    client = trained()
    handle = service_client.create_custom_loss(squares, {"logprobs": 1}).result()
    with pytest.raises(tinker.BadRequestError, match="loss_fn: there is no loss"):
        client.forward_backward(data.supervised(5), handle.loss_id).result()


def ranked(rank):
    return lambda d: d.loss_fn_inputs.update(advantages=tinker.TensorData.from_numpy(np.ones((5,) * rank, np.float32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.loss_fn_inputs.pop("advantages"), r"lacks 'advantages', which the loss 'custom pairwise' reads"),
        (ranked(2), r"'advantages'\] has shape \(5, 5\); it must be \(5,\), one value for each token"),
        (
            lambda d: d.loss_fn_inputs.update(target_tokens=tinker.TensorData.from_numpy(np.ones((5, 1), np.int64))),
            r"has shape \(5, 1\); the loss 'custom pairwise' works on \(5,\) only",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused_by_name(service_client, trained, data, change, message):
    client, datum = trained(), data.datum(5, **POLICY)
    handle = service_client.create_custom_loss(pairwise, ONE).result()
    change(datum)
    with pytest.raises(tinker.BadRequestError, match=message):
        client.forward_backward([datum], "custom", {"loss_id": handle.loss_id}).result()


def misshapen(logprobs, advantages):
    return (logprobs[1:] * advantages).sum(), {}


def a_vector(logprobs):
    return logprobs * 2, {}


def without_gradient(logprobs):
    return logprobs.detach().sum(), {}


@pytest.mark.parametrize(
    ("function", "ranks", "message"),
    [
        (
            misshapen,
            ONE,
            r"the loss 'custom misshapen' failed on data\[1\]: the node 'mul', operator.mul, failed: Runt",
        ),
        (a_vector, {"logprobs": 1}, r"'custom a_vector' failed on data\[0\]: it returned \(1,\), not a scalar"),
        (without_gradient, {"logprobs": 1}, "does not depend on the logprobs, so it has no gradient"),
    ],
)
def test_what_fails_while_it_runs_names_the_node_and_the_datum_and_changes_nothing(
    service_client, trained, measured, data, function, ranks, message
):
    client, batch = trained(), [data.datum(length, **POLICY) for length in (1, 6)]
    handle = service_client.create_custom_loss(function, ranks).result()
    with pytest.raises(tinker.RequestFailedError, match=message):
        client.forward_backward_custom(batch, handle).result()
    assert client.optim_step(tinker.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"] == 0


def noisy(logprobs):
    return (logprobs * torch.rand_like(logprobs)).sum(), {}


def saved(logprobs):
    return logprobs.sum() + logprobs.exp_().sum(), {}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (noisy, r"calls the function 'torch.rand_like', which custom losses may not call"),
        (saved, r"calls the method 'exp_', which custom losses may not call"),
    ],
)
def test_what_the_sdk_lets_through_and_the_server_does_not_run_is_refused_by_name(service_client, function, message):
    with pytest.raises(tinker.BadRequestError, match=message):
        service_client.create_custom_loss(function, {"logprobs": 1}).result()
