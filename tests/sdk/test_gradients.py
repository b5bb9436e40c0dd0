"""Logprobs and every LoRA gradient, as the vendor's SDK gets them, against transformers + peft."""

import numpy as np
import pytest
import tinker

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
POLICY = {"logprobs": (-6.0, -2.0), "advantages": (-1.0, 1.0)}


def _cross_entropy(lp, given):
    return -(lp * given["weights"]).sum()


def _importance_sampling(lp, given):
    return -((lp - given["logprobs"]).exp() * given["advantages"]).sum()


def _ppo(low, high):
    def formula(lp, given):
        ratio = (lp - given["logprobs"]).exp()
        return -(ratio * given["advantages"]).minimum(ratio.clamp(low, high) * given["advantages"]).sum()

    return formula


def _cispo(low, high):
    def formula(lp, given):
        ratio = (lp - given["logprobs"]).exp().clamp(low, high).detach()
        return -(ratio * lp * given["advantages"]).sum()

    return formula


def _dro(beta):
    def formula(lp, given):
        return -(lp * given["advantages"] - 0.5 * beta * (lp - given["logprobs"]) ** 2).sum()

    return formula


CASES = {
    "cross_entropy": ("cross_entropy", None, {"weights": (-1.5, 2.0)}, _cross_entropy),
    "importance_sampling": ("importance_sampling", None, POLICY, _importance_sampling),
    "ppo": ("ppo", None, POLICY, _ppo(0.8, 1.2)),
    "ppo with thresholds": ("ppo", {"clip_low_threshold": 0.3, "clip_high_threshold": 3.0}, POLICY, _ppo(0.3, 3.0)),
    "cispo": ("cispo", None, POLICY, _cispo(0.0, 4.0)),
    "cispo with thresholds": (
        "cispo",
        {"clip_low_threshold": 0.5, "clip_high_threshold": 0.9},
        POLICY,
        _cispo(0.5, 0.9),
    ),
    "dro": ("dro", {"beta": 0.05}, POLICY, _dro(0.05)),
}


@pytest.fixture
def compare(reference, measured, assert_same_gradients):
    """Run a batch through the SDK and through the reference, and compare loss, logprobs and gradients."""

    def run(client, base_model, batch, loss, config, formula):
        expected_loss, expected_logprobs, expected = reference(client, base_model).loss_and_gradients(batch, formula)
        output = client.forward_backward(batch, loss, config).result()
        assert output.metrics["loss:sum"] == pytest.approx(expected_loss, rel=1e-4, abs=1e-4)
        for found, logprobs in zip(output.loss_fn_outputs, expected_logprobs, strict=True):
            np.testing.assert_allclose(found["logprobs"].to_numpy(), logprobs, atol=1e-4)
        assert_same_gradients(measured(client), expected)

    return run


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
def test_a_packed_batch_of_mixed_lengths_agrees_with_transformers_and_peft(trained, compare, data, base_model, case):
    loss, config, ranges, formula = CASES[case]
    batch = [data.datum(length, **ranges) for length in (13, 2, 40, 1, 7, 40, 120)]
    compare(trained(base_model), base_model, batch, loss, config, formula)


@pytest.mark.parametrize("case", ["cross_entropy", "importance_sampling"])
def test_several_targets_per_token_agree(trained, compare, data, case):
    loss, config, ranges, formula = CASES[case]
    batch = [data.datum(length, targets, **ranges) for length, targets in ((13, 3), (5, 3), (8, 1), (9, None))]
    compare(trained(), LLAMA, batch, loss, config, formula)


def test_sparse_targets_and_weights_mean_what_dense_ones_mean(trained, compare, data):
    torch = pytest.importorskip("torch")
    dense = data.datum(12, 6, weights=(-1.0, 1.0))
    targets, weights = (dense.loss_fn_inputs[name].to_torch() for name in ("target_tokens", "weights"))
    kept = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    targets, weights = targets * kept, weights * kept
    sparse = tinker.Datum(model_input=dense.model_input, loss_fn_inputs={"target_tokens": targets, "weights": weights})
    assert sparse.loss_fn_inputs["weights"].sparse_crow_indices is not None
    compare(trained(), LLAMA, [sparse], "cross_entropy", None, _cross_entropy)


@pytest.mark.parametrize(
    ("flags", "absent"),
    [
        ({"train_mlp": False}, "mlp"),
        ({"train_attn": False}, "self_attn"),
        ({"train_unembed": False}, "lm_head"),
        ({"train_mlp": False, "train_attn": False}, "layers"),
    ],
)
def test_each_train_flag_trains_exactly_its_modules(trained, compare, data, server, flags, absent):
    client = trained(QWEN, **flags)
    names = server.tensors(client.save_state("flags", overwrite=True).result().path)
    assert names
    assert not any(absent in name for name in names)
    compare(client, QWEN, data.supervised(13, 4), "cross_entropy", None, _cross_entropy)


def test_a_sequence_longer_than_a_micro_batch_is_not_cut(trained, compare, data):
    compare(trained(), LLAMA, data.supervised(256, 256, 256, 256, 256, 3), "cross_entropy", None, _cross_entropy)


def test_two_passes_accumulate_what_one_pass_over_both_does(trained, measured, data, assert_same_gradients):
    client, first, second = trained(), data.supervised(11, 30), data.supervised(7)
    client.forward_backward(first, "cross_entropy").result()
    client.forward_backward(second, "cross_entropy").result()
    apart = measured(client)
    client.forward_backward([*first, *second], "cross_entropy").result()
    assert_same_gradients(apart, measured(client), tolerance=1e-5)


def test_the_same_datum_twice_doubles_the_gradient(trained, measured, data, assert_same_gradients):
    client, [datum] = trained(), data.supervised(21)
    client.forward_backward([datum], "cross_entropy").result()
    once = measured(client)
    client.forward_backward([datum, datum], "cross_entropy").result()
    assert_same_gradients(measured(client), {name: 2 * gradient for name, gradient in once.items()}, tolerance=1e-5)


def test_forward_alone_accumulates_nothing_and_returns_the_same_logprobs(trained, data, server):
    client, batch = trained(), data.supervised(21, 8)
    before = client.save_state("before").result().path
    forward = client.forward(batch, "cross_entropy").result()
    norm = client.optim_step(tinker.AdamParams(learning_rate=1.0, beta1=0.0)).result().metrics["grad_norm"]
    assert norm == 0
    both = client.forward_backward(batch, "cross_entropy")
    client.load_state(before).result()
    assert forward.metrics == client.forward_backward(batch, "cross_entropy").result().metrics
    assert both.result().loss_fn_outputs[0]["logprobs"].shape == [21]


def test_a_custom_loss_agrees(trained, reference, measured, data, assert_same_gradients):
    client, batch = trained(), data.supervised(9, 17)

    def squares(data, logprobs):
        return sum((lp**2).sum() for lp in logprobs), {"mine": 3.0}

    _, _, expected = reference(client, LLAMA).loss_and_gradients(batch, lambda lp, _: (lp**2).sum())
    output = client.forward_backward_custom(batch, squares).result()
    assert output.metrics["mine"] == 3.0
    assert_same_gradients(measured(client), expected)
