"""The optimizer dimuon through the vendor's SDK: our definition of it in docs/protocol.md, computed here by itself."""

import math

import numpy as np
import pytest
import tinker

LLAMA = "tiny/llama"
DIMUON = tinker.DimuonOptimizerConfig()


def orthogonalised(matrix):
    """Five steps of the quintic Newton-Schulz iteration (Jordan et al. 2024), in float64."""
    x = matrix.astype(np.float64) / max(np.linalg.norm(matrix), 1e-7)
    x = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Dimuon:
    """The reference: one momentum per LoRA tensor."""

    def __init__(self):
        self.momentum = {}

    def step(self, tensors, gradients, lr, beta1=0.9, clip=0.0):
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
        scale = clip / norm if 0 < clip < norm else 1.0
        after = {}
        for name, gradient in gradients.items():
            m = self.momentum[name] = beta1 * self.momentum.get(name, 0.0) + (1 - beta1) * scale * gradient
            after[name] = tensors[name] - lr * orthogonalised(beta1 * m + (1 - beta1) * scale * gradient)
        return after


def assert_same_change(before, found, expected, tolerance=0.04):
    """torch iterates in bfloat16, so a step is right to a few hundredths of its size."""
    for name, tensor in expected.items():
        change = np.linalg.norm(tensor - before[name])
        assert np.linalg.norm(found[name] - tensor) <= tolerance * change + 1e-6, name


@pytest.fixture
def dimuon(service_client):
    return service_client.create_lora_training_client(LLAMA, rank=4, seed=7, optimizer=DIMUON).result()


@pytest.fixture
def tensors(server):
    """The adapter's tensors of this moment."""
    return lambda client: server.tensors(client.save_state("now", overwrite=True).result().path)


def step(client, batch, **params):
    client.forward_backward(batch, "cross_entropy").result()
    return client.optim_step(tinker.DimuonParams(**params)).result().metrics


def test_steps_agree_with_the_definition(dimuon, reference, tensors, data):
    expected = Dimuon()
    for params in ({"lr": 0.05}, {"lr": 0.02, "beta1": 0.5}, {"lr": 0.03, "clip": 0.7}, {"lr": 0.03, "clip": -1.0}):
        batch, before = data.supervised(9, 20), tensors(dimuon)
        _, _, gradients = reference(dimuon, LLAMA).loss_and_gradients(batch, lambda lp, d: -(lp * d["weights"]).sum())
        sent = {"learning_rate": params["lr"], "beta1": params.get("beta1", 0.9)}
        metrics = step(dimuon, batch, **sent, grad_clip_norm=params.get("clip", 0.0))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert_same_change(before, tensors(dimuon), expected.step(before, gradients, **params))


def test_each_tensor_moves_by_the_root_of_the_rank_however_large_its_gradient(dimuon, tensors, data):
    step(dimuon, data.supervised(9), learning_rate=0.01)  # B leaves zero, so that A has a gradient
    for size in (1e-3, 1e3):
        before, batch = tensors(dimuon), [data.datum(20, weights=(0.5 * size, size))]
        step(dimuon, batch, learning_rate=0.01, beta1=0.0)
        for name, tensor in tensors(dimuon).items():
            moved = tensor - before[name]
            assert np.linalg.norm(moved) == pytest.approx(0.01 * 2, rel=0.25), name
            assert np.linalg.norm(moved, 2) < 0.0125, name


def test_a_tensor_without_a_gradient_does_not_move(dimuon, tensors, data):
    before = tensors(dimuon)
    step(dimuon, data.supervised(9), learning_rate=0.1)  # B is zero, so A's gradient is
    for name, tensor in tensors(dimuon).items():
        assert np.array_equal(tensor, before[name]) == name.endswith("lora_A.weight"), name


def test_what_a_model_steps_with_is_told(service_client, dimuon, data):
    assert dimuon.get_info().optimizer_config.model_dump() == DIMUON.model_dump()
    path = dimuon.save_state("told").result().path
    rest = service_client.create_rest_client()
    told = rest.get_weights_info_by_tinker_path(path).result().optimizer_config
    assert told.model_dump() == DIMUON.model_dump()


def test_parameters_of_the_other_optimizer_are_refused_by_name(service_client, dimuon, trained):
    message = "are for the optimizer 'adamw', but the model was created with 'dimuon'"
    with pytest.raises(tinker.BadRequestError, match=message):
        dimuon.optim_step(tinker.AdamParams()).result()
    message = "are for the optimizer 'dimuon', but the model was created with 'adamw'"
    with pytest.raises(tinker.BadRequestError, match=message):
        trained().optim_step(tinker.DimuonParams(learning_rate=0.1)).result()


def test_resumed_with_its_optimizer_it_goes_on_as_if_it_had_not_stopped(service_client, dimuon, tensors, data):
    first, second = data.supervised(9, 20), data.supervised(12)
    step(dimuon, first, learning_rate=0.05)
    path = dimuon.save_state("half").result().path
    resumed = service_client.create_training_client_from_state_with_optimizer(path).result()
    assert resumed.get_info().optimizer_config.model_dump() == DIMUON.model_dump()
    weights_only = service_client.create_training_client_from_state(path, optimizer=DIMUON).result()
    for client in (dimuon, resumed, weights_only):
        step(client, second, learning_rate=0.05)
    expected = tensors(dimuon)
    for name, tensor in tensors(resumed).items():
        np.testing.assert_allclose(tensor, expected[name], atol=1e-6)
    assert any(not np.allclose(tensor, expected[name], atol=1e-3) for name, tensor in tensors(weights_only).items())


def test_saved_before_its_first_step_it_is_resumed_too(service_client, dimuon, data):
    path = dimuon.save_state("unborn").result().path
    resumed = service_client.create_training_client_from_state_with_optimizer(path).result()
    assert step(resumed, data.supervised(5), learning_rate=0.1)["grad_norm"] > 0


def test_weights_alone_begin_with_the_optimizer_that_is_asked_for(service_client, dimuon, data):
    path = dimuon.save_state("weights").result().path
    adam = service_client.create_training_client_from_state(path).result()
    adam.optim_step(tinker.AdamParams()).result()
    assert adam.get_info().optimizer_config.type == "adamw"


def test_the_state_of_one_optimizer_is_not_loaded_into_another(service_client, server, dimuon, trained, data):
    step(dimuon, data.supervised(5), learning_rate=0.1)
    path = dimuon.save_state("dimuons").result().path
    with pytest.raises(tinker.RequestFailedError, match="holds the state of 'dimuon', this model steps with 'adamw'"):
        trained().load_state_with_optimizer(path).result()
    session = server.service.create_session(user_metadata={})
    with pytest.raises(ValueError, match=r"optimizer_config.type is 'adamw', but .* holds the state of 'dimuon'"):
        server.service.create_model_from_state(session, 0, path, optimizer=True, optimizer_kind="adamw")
