"""The same seed makes the same numbers, whichever way they are asked for."""

import numpy as np
import pytest
import torch

MODEL = "tiny/llama"
EXACT = {"rtol": 1e-6, "atol": 1e-6}

LOSSES = {
    "cross_entropy": ({"weights": (-1.5, 2.0)}, {}),
    "importance_sampling": ({"logprobs": (-3, -1), "advantages": (-1, 1)}, {}),
    "ppo": ({"logprobs": (-3, -1), "advantages": (-1, 1)}, {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
    "cispo": ({"logprobs": (-3, -1), "advantages": (-1, 1)}, {}),
    "dro": ({"logprobs": (-3, -1), "advantages": (-1, 1)}, {"beta": 0.05}),
}


def trained(way, steps=2):
    """A client whose adapter is not at its beginning any more."""
    trainer = way.client().create_lora_training_client(MODEL, rank=4, seed=7).result()
    for step in range(steps):
        trainer.forward_backward([way.datum(9, step), way.datum(5, step)], "cross_entropy")
        trainer.optim_step(way.tinker.AdamParams(learning_rate=0.02)).result()
    return trainer


def gradients(way, trainer):
    """A step that is a plain multiple of the gradient: both betas 0, eps far above every gradient."""
    step = way.tinker.AdamParams(learning_rate=1e12, beta1=0.0, beta2=0.0, eps=1e9)
    before = way.tensors(trainer.save_state("before").result().path)
    trainer.optim_step(step).result()
    after = way.tensors(trainer.save_state("after").result().path)
    return {name: (tensor - after[name]) / 1000 for name, tensor in before.items()}


def in_every_way(ways, scenario):
    """What the scenario returns, in the SDK's way and in each of ours."""
    found = {name: scenario(way) for name, way in ways.items()}
    return found["sdk"], [found["wire"], found["in process"]]


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.abs(tensor).max() > 0, name
        np.testing.assert_allclose(found[name], tensor, err_msg=name, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_logprobs_metrics_and_gradients_are_the_same(ways, loss):
    ranges, config = LOSSES[loss]

    def scenario(way):
        trainer = trained(way)
        data = [way.datum(8, 3, **ranges), way.datum(6, 4, **ranges)]
        output = trainer.forward_backward(data, loss, config).result()
        return output, gradients(way, trainer)

    expected, others = in_every_way(ways, scenario)
    for found in others:
        assert found[0].metrics == pytest.approx(expected[0].metrics, rel=1e-6)
        assert found[0].loss_fn_output_type == expected[0].loss_fn_output_type
        for mine, theirs in zip(found[0].loss_fn_outputs, expected[0].loss_fn_outputs, strict=True):
            assert mine.keys() == theirs.keys()
            assert (mine["logprobs"].dtype, mine["logprobs"].shape) == (
                theirs["logprobs"].dtype,
                theirs["logprobs"].shape,
            )
            np.testing.assert_allclose(mine["logprobs"].to_numpy(), theirs["logprobs"].to_numpy(), **EXACT)
        assert_same_tensors(found[1], expected[1])


@pytest.mark.parametrize("targets", [None, 3])
def test_a_custom_loss_between_two_passes_is_the_same(ways, targets):
    def squared(data, logprobs):
        loss = sum((one.exp() * torch.arange(1.0, one.numel() + 1).reshape(one.shape)).pow(2).sum() for one in logprobs)
        return loss, {"longest": float(max(len(one) for one in logprobs))}

    def scenario(way):
        trainer = trained(way)
        data = [way.datum(8, 3, targets), way.datum(6, 4, targets)]
        output = trainer.forward_backward_custom(data, squared).result()
        return output.metrics, gradients(way, trainer)

    expected, others = in_every_way(ways, scenario)
    assert expected[0]["longest"] == 8
    for found in others:
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert_same_tensors(found[1], expected[1])


def entropic(logprobs, advantages, scale):
    ratio = torch.exp(logprobs - logprobs.detach())
    loss = -(ratio * advantages).sum() * scale + (logprobs[1:] ** 2).mean()
    return loss, {"custom/best:mean": logprobs.max(), "custom/count:sum": torch.ones_like(logprobs).sum()}


def test_a_traced_loss_is_the_same(ways):
    def scenario(way):
        client = way.client()
        trainer = client.create_lora_training_client(MODEL, rank=4, seed=7).result()
        handle = client.create_custom_loss(entropic, {"logprobs": 1, "advantages": 1, "scale": 0}).result()
        assert handle.loss_id is not None
        data = []
        for seed in range(2):
            datum = way.datum(7, seed, advantages=(-1, 1))
            datum.loss_fn_inputs["scale"] = way.tinker.TensorData.from_numpy(np.array(0.5 + seed, np.float32))
            data.append(datum)
        output = trainer.forward_backward_custom(data, handle).result()
        return output.metrics, gradients(way, trainer), (handle.key, handle.name, handle.input_names)

    expected, others = in_every_way(ways, scenario)
    assert expected[0]["custom/count:sum"] == 14
    for found in others:
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        assert_same_tensors(
            {n: t for n, t in found[1].items() if np.any(expected[1][n])},
            {n: t for n, t in expected[1].items() if np.any(t)},
        )
        assert found[2][1:] == expected[2][1:]


def test_dimuon_steps_are_the_same(ways):
    def scenario(way):
        types = way.tinker.types
        optimizer = types.DimuonOptimizerConfig()
        trainer = way.client().create_lora_training_client(MODEL, rank=4, seed=7, optimizer=optimizer).result()
        assert trainer.get_info().optimizer_config.type == "dimuon"
        trainer.forward_backward([way.datum(9)], "cross_entropy")
        trainer.optim_step(types.DimuonParams(learning_rate=0.01)).result()
        return way.tensors(trainer.save_state("dimuon").result().path)

    expected, others = in_every_way(ways, scenario)
    for found in others:
        assert_same_tensors(found, expected)


def test_sparse_and_dense_inputs_are_the_same(ways):
    def scenario(way):
        trainer = trained(way)
        weights = torch.zeros(8, 5)
        weights[2, 1], weights[6, 4] = 1.5, -0.5
        targets = torch.where(weights != 0, torch.tensor(11), torch.tensor(0))
        datum = way.tinker.Datum(way.prompt(*range(2, 10)), {"target_tokens": targets, "weights": weights})
        assert datum.loss_fn_inputs["weights"].sparse_crow_indices is not None
        output = trainer.forward_backward([datum], "cross_entropy").result()
        return output.metrics["loss:sum"], output.loss_fn_outputs[0]["logprobs"].to_numpy()

    expected, others = in_every_way(ways, scenario)
    assert expected[1].shape == (8, 5)
    for found in others:
        assert found[0] == pytest.approx(expected[0], rel=1e-6)
        np.testing.assert_allclose(found[1], expected[1], **EXACT)


def test_samples_and_all_that_is_asked_about_the_prompt_are_the_same(ways):
    def scenario(way):
        sampler = trained(way).save_weights_and_get_sampling_client().result()
        targets = way.tinker.TensorData.from_numpy(np.array([[5, -1], [7, 8], [-1, 9], [3, 2]]))
        params = way.tinker.SamplingParams(max_tokens=12, temperature=0.8, top_k=20, top_p=0.95, seed=3, stop=[4, 5])
        return sampler.sample(
            way.prompt(5, 6, 7, 8, 9),
            3,
            params,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=2,
            topk_sample_logprobs=3,
            target_prompt_logprobs=targets,
            prompt_alt_tokens_k=2,
            prompt_logprobs_last_n=2,
        ).result()

    expected, others = in_every_way(ways, scenario)
    for found in others:
        for mine, theirs in zip(found.sequences, expected.sequences, strict=True):
            assert (mine.tokens, mine.stop_reason) == (theirs.tokens, theirs.stop_reason)
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-6)
            assert_same_tables(mine.topk_logprobs, theirs.topk_logprobs)
            assert mine.sequence_id not in ("", theirs.sequence_id)
        assert found.prompt_logprobs == pytest.approx(expected.prompt_logprobs, abs=1e-6)
        assert_same_tables(found.topk_prompt_logprobs, expected.topk_prompt_logprobs)
        for name in ("tokens", "logprobs"):
            mine, theirs = getattr(found.prompt_alt_tokens, name), getattr(expected.prompt_alt_tokens, name)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_allclose(mine.to_numpy(), theirs.to_numpy(), **EXACT)
        mine, theirs = found.target_prompt_logprobs, expected.target_prompt_logprobs
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(mine.to_numpy(), theirs.to_numpy(), **EXACT)


@pytest.mark.parametrize("as_text", [False, True])
def test_sampling_stops_where_it_is_told_to(way, as_text):
    sampler = way.client().create_sampling_client(base_model=MODEL).result()

    def tokens(**fields):
        params = way.tinker.SamplingParams(temperature=0.0, **fields)
        [sequence] = sampler.sample(way.prompt(5, 6, 7), 1, params).result().sequences
        return sequence.tokens, sequence.stop_reason

    free, reason = tokens(max_tokens=12, stop=[])
    assert (len(free), reason) == (12, "length")
    if as_text:
        with pytest.raises(way.tinker.RequestFailedError):  # the tiny model has no tokenizer to find text with
            tokens(max_tokens=12, stop="text")
        return
    end = next(index for index, token in enumerate(free) if token not in free[:index] and index > 0)
    assert tokens(max_tokens=12, stop=[free[end]]) == (free[: end + 1], "stop")


def assert_same_tables(mine, theirs):
    assert len(mine) == len(theirs)
    for row, expected in zip(mine, theirs, strict=True):
        if expected is None:
            assert row is None
            continue
        assert [token for token, _ in row] == [token for token, _ in expected]
        assert [value for _, value in row] == pytest.approx([value for _, value in expected], abs=1e-6)


def test_sparse_prompt_targets_are_answered_in_the_same_layout(ways):
    def scenario(way):
        sampler = way.client().create_sampling_client(base_model=MODEL).result()
        tensor = torch.full((9, 40), -1)
        tensor[0, 3], tensor[5, 0], tensor[5, 39] = 4, 5, 6
        targets = way.tinker.TensorData.from_torch_sparse(tensor, pad_value=-1)
        params = way.tinker.SamplingParams(max_tokens=1)
        asked = sampler.sample(way.prompt(*range(2, 12)), 1, params, target_prompt_logprobs=targets)
        return asked.result().target_prompt_logprobs

    expected, others = in_every_way(ways, scenario)
    assert expected.sparse_crow_indices is not None
    for found in others:
        for name in ("dtype", "shape", "sparse_crow_indices", "sparse_col_indices"):
            assert getattr(found, name) == getattr(expected, name), name
        np.testing.assert_allclose(found.data, expected.data, **EXACT)


def test_a_resumed_model_goes_on_as_the_saved_one(way):
    trainer = trained(way)
    path = trainer.save_state("here").result().path
    other = way.client().create_training_client_from_state_with_optimizer(path).result()
    for one in (trainer, other):
        one.forward_backward([way.datum(9, 8)], "cross_entropy")
        one.optim_step(way.tinker.AdamParams(learning_rate=0.02)).result()
    first, second = (way.tensors(one.save_state("there").result().path) for one in (trainer, other))
    assert_same_tensors(second, first)
    weights_only = way.client().create_training_client_from_state(path).result()
    assert_same_tensors(way.tensors(weights_only.save_state("again").result().path), way.tensors(path))


def test_load_state_replaces_the_weights(way):
    trainer = trained(way)
    path = trainer.save_state("early").result().path
    trainer.forward_backward([way.datum(9, 8)], "cross_entropy")
    trainer.optim_step(way.tinker.AdamParams(learning_rate=0.02)).result()
    with pytest.warns(FutureWarning):
        loaded = trainer.load_state(path).result()
    assert loaded.path == path
    assert_same_tensors(way.tensors(trainer.save_state("late").result().path), way.tensors(path))


def test_a_snapshot_stays_and_an_inflight_sampler_follows(way):
    trainer = trained(way)
    prompt = way.prompt(*range(2, 30))

    def logprobs(sampler):
        return np.array(sampler.compute_logprobs(prompt).result()[1:])

    snapshot = trainer.save_weights_and_get_sampling_client().result()
    first = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    old = logprobs(snapshot)
    trainer.forward_backward([way.datum(9, 8)], "cross_entropy")
    trainer.optim_step(way.tinker.AdamParams(learning_rate=0.05))
    second = trainer.save_weights_and_get_sampling_client(kind="inflight").result()
    new = logprobs(second)
    assert not np.allclose(old, new, atol=1e-2)
    np.testing.assert_allclose(logprobs(first), new, atol=1e-4)
    np.testing.assert_allclose(logprobs(snapshot), old, atol=1e-4)
    assert trainer.save_weights_and_get_sampling_client(record_stability_info=True).result().get_base_model() == MODEL
