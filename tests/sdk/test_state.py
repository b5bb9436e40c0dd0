"""Optimizer steps and saved states, against PEFT's own model, torch's own AdamW, and a client that never stopped."""

import numpy as np
import pytest
import tinker
import torch

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
STILL = tinker.AdamParams(learning_rate=0.0)

# Odd values that all matter: gradients have norms of about 100 here. Steps are small, for long ones through a random
# model magnify the last digits in which two implementations differ.
STEPS = [
    {"learning_rate": 0.001, "beta1": 0.5, "beta2": 0.7, "eps": 0.5, "weight_decay": 0.3, "grad_clip_norm": 0.0},
    {"learning_rate": 0.003, "beta1": 0.85, "beta2": 0.9, "eps": 0.01, "weight_decay": 0.0, "grad_clip_norm": 0.5},
    {"learning_rate": 0.0005, "beta1": 0.0, "beta2": 0.99, "eps": 1e-3, "weight_decay": 2.0, "grad_clip_norm": 1e9},
    {"learning_rate": 0.002, "beta1": 0.6, "beta2": 0.0, "eps": 2.0, "weight_decay": 0.1, "grad_clip_norm": 20.0},
]


class Twin:
    """A model rebuilt from its stored adapter: PEFT's model, and a new AdamW of torch."""

    def __init__(self, reference):
        self.reference = reference
        named = reference.model.named_parameters()
        self.parameters = {name.replace(".default", ""): one for name, one in named if "lora_" in name}
        self.optimizer = torch.optim.AdamW(self.parameters.values())

    def step(self, batch, params):
        """One pass and one step; returns the gradient's norm before clipping."""
        self.reference.loss_and_gradients(batch, lambda lp, given: -(lp * given["weights"]).sum())
        gradients = [parameter.grad for parameter in self.parameters.values()]
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        if params.grad_clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), params.grad_clip_norm)
        self.optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self.optimizer.step()
        return norm.item()

    def tensors(self):
        return {name: parameter.detach().numpy().copy() for name, parameter in self.parameters.items()}


@pytest.fixture
def tensors(server):
    """A client's adapter of this moment."""

    def now(client):
        return server.tensors(client.save_state("now", overwrite=True).result().path)

    return now


def step(client, batch, **params):
    """One pass and one step; returns the gradient's norm."""
    client.forward_backward(batch, "cross_entropy")
    return client.optim_step(tinker.AdamParams(**params)).result().metrics["grad_norm"]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def assert_close(found, expected, tolerance, scale=None):
    """Each tensor's difference, against the size of what is expected or of the tensors in `scale`."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        size = np.linalg.norm((scale or expected)[name])
        assert size > 0, name
        difference = np.linalg.norm(found[name] - tensor) / size
        assert difference < tolerance, f"{name}: {difference:.1e}"


def assert_follows(client, twin, batches, tensors):
    """After every step the client's tensors have changed as the twin's have, to 1e-4 of the change."""
    before = twin.tensors()
    for batch, params in zip(batches, STEPS, strict=True):
        expected_norm = twin.step(batch, tinker.AdamParams(**params))
        assert step(client, batch, **params) == pytest.approx(expected_norm, rel=1e-4)
        after = twin.tensors()
        change = {name: after[name] - before[name] for name in after}
        assert_close(tensors(client), after, 1e-4, change)


def batches_of(data):
    return [data.supervised(9, 4), data.supervised(12), data.supervised(3, 20, 1), data.supervised(7)]


@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
def test_every_adam_parameter_is_honoured_and_weights_alone_begin_a_new_optimizer(
    service_client, trained, reference, data, tensors, base_model
):
    before = trained(base_model)
    client = service_client.create_training_client_from_state(before.save_state("start").result().path).result()
    assert_same(tensors(client), tensors(before))
    assert_follows(client, Twin(reference(client, base_model)), batches_of(data), tensors)


@pytest.mark.parametrize("name", ["learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"])
def test_each_adam_parameter_makes_a_difference_of_its_own(service_client, trained, data, tensors, name):
    """So that the comparison with torch would see each of them missing."""
    path, batches = trained().save_state("start").result().path, batches_of(data)[:2]
    ends = []
    for other in (False, True):
        client = service_client.create_training_client_from_state(path).result()
        start = tensors(client)
        for batch, params, changed in zip(batches, STEPS[:2], STEPS[2:]):
            step(client, batch, **(params | ({name: changed[name]} if other else {})))
        ends.append(tensors(client))
    changes = [np.linalg.norm(ends[0][key] - start[key]) for key in start]
    differences = [np.linalg.norm(ends[0][key] - ends[1][key]) for key in start]
    assert np.linalg.norm(differences) > 0.01 * np.linalg.norm(changes)


def test_a_learning_rate_of_zero_changes_nothing(trained, data, tensors):
    client = trained()
    before = tensors(client)
    params = {"beta1": 0.3, "beta2": 0.3, "eps": 1.0, "weight_decay": 10.0, "grad_clip_norm": 0.1}
    assert step(client, data.supervised(9), learning_rate=0.0, **params) > 0
    assert_same(tensors(client), before)


def test_a_step_without_a_pass_has_a_gradient_of_zero_and_still_decays(trained, tensors):
    client = trained()
    before = tensors(client)
    params = tinker.AdamParams(learning_rate=0.1, beta1=0.0, weight_decay=0.5)
    assert client.optim_step(params).result().metrics["grad_norm"] == 0
    after = tensors(client)
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor * 0.95, rtol=1e-6)


def test_a_step_clears_the_gradients(trained, data):
    client, batch = trained(), data.supervised(9)
    first = step(client, batch, learning_rate=0.0)
    assert client.optim_step(STILL).result().metrics["grad_norm"] == 0
    assert step(client, batch, learning_rate=0.0) == first


@pytest.mark.parametrize("way", ["a new client", "load_state_with_optimizer"])
@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
def test_with_its_optimizer_a_state_goes_on_like_a_client_that_never_stopped(
    service_client, trained, data, tensors, base_model, way
):
    client = trained(base_model)
    path = client.save_state("half").result().path
    if way == "a new client":
        resumed = service_client.create_training_client_from_state_with_optimizer(path).result()
    else:
        resumed = trained(base_model)
        resumed.load_state_with_optimizer(path).result()
    assert_same(tensors(resumed), tensors(client))
    for batch, params in zip(batches_of(data), STEPS, strict=True):
        norms = [step(one, batch, **params) for one in (client, resumed)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
        assert_close(tensors(resumed), tensors(client), 1e-6)


def test_without_its_optimizer_a_loaded_state_begins_a_new_one(trained, reference, data, tensors):
    client = trained()
    path = client.save_state("half").result().path
    other = trained()
    step(other, data.supervised(5), learning_rate=0.1)
    other.load_state(path).result()
    assert_same(tensors(other), tensors(client))
    assert_follows(other, Twin(reference(other, LLAMA)), batches_of(data), tensors)


def test_the_optimizers_state_makes_a_difference(service_client, trained, data, tensors):
    """So that the comparisons above would see it missing."""
    path = trained().save_state("half").result().path
    batch = data.supervised(9)
    ends = []
    for create in ("create_training_client_from_state", "create_training_client_from_state_with_optimizer"):
        client = getattr(service_client, create)(path).result()
        step(client, batch, learning_rate=0.02)
        ends.append(tensors(client))
    assert any(np.linalg.norm(ends[0][name] - ends[1][name]) > 1e-3 * np.linalg.norm(ends[0][name]) for name in ends[0])


def test_a_resumed_model_has_the_settings_of_the_first(service_client, trained, data, tensors):
    first = trained(QWEN, rank=5, train_unembed=False)
    path = first.save_state("start").result().path
    resumed = service_client.create_training_client_from_state(path).result()
    infos = [client.get_info() for client in (first, resumed)]
    assert [(info.model_name, info.lora_rank) for info in infos] == [(QWEN, 5)] * 2
    assert not any("lm_head" in name for name in tensors(resumed))


def test_loading_drops_the_gradients_of_the_weights_that_are_gone(trained, data):
    client = trained()
    path = client.save_state("here").result().path
    client.forward_backward(data.supervised(9), "cross_entropy")
    client.load_state_with_optimizer(path)
    assert client.optim_step(STILL).result().metrics["grad_norm"] == 0


def test_saving_leaves_gradients_where_they_are(trained, data):
    client, batch = trained(), data.supervised(9)
    alone = step(client, batch, learning_rate=0.0)
    client.forward_backward(batch, "cross_entropy")
    client.save_state("between")
    client.save_weights_for_sampler("between")
    assert client.optim_step(STILL).result().metrics["grad_norm"] == alone


def test_a_state_of_another_rank_is_refused_and_changes_nothing(trained, tensors):
    small, large = trained(rank=2), trained(rank=4)
    before = tensors(large)
    with pytest.raises(tinker.RequestFailedError, match=r"has shape .*; this model's has") as refused:
        large.load_state(small.save_state("small").result().path).result()
    assert refused.value.category == "user"
    assert_same(tensors(large), before)


@pytest.mark.parametrize("base_model", [LLAMA, QWEN])
def test_peft_reads_the_stored_folder_and_computes_the_same_logprobs(
    server, folders, trained, reference, data, base_model
):
    """The state's folder, and the sampler's: `reference` opens the first with PeftModel.from_pretrained."""
    client, batch = trained(base_model), data.supervised(13, 40)
    forward = client.forward(batch, "cross_entropy").result()
    by_state = reference(client, base_model)
    snapshot = server.folder(client.save_weights_for_sampler("snapshot").result().path)
    by_snapshot = type(by_state)(folders[base_model], snapshot)
    for found, datum in zip(forward.loss_fn_outputs, batch, strict=True):
        for opened in (by_state, by_snapshot):
            expected = opened.logprobs(datum).detach().numpy()
            np.testing.assert_allclose(found["logprobs"].to_numpy(), expected, atol=1e-4)


def test_a_seed_decides_the_first_weights_and_nothing_else_does(service_client, tensors):
    def first_weights(seed, **flags):
        return tensors(service_client.create_lora_training_client(LLAMA, rank=4, seed=seed, **flags).result())

    one = first_weights(11)
    assert_same(first_weights(11), one)
    assert all((tensor == 0).all() == ("lora_B" in name) for name, tensor in one.items())
    other = first_weights(12)
    assert all((tensor != other[name]).any() for name, tensor in one.items() if "lora_A" in name)
    for flag in ("train_mlp", "train_attn", "train_unembed"):
        some = first_weights(11, **{flag: False})
        assert some.keys() < one.keys()
        assert_same(some, {name: one[name] for name in some})


def test_without_a_seed_each_model_begins_elsewhere(service_client, tensors):
    first, second = (tensors(service_client.create_lora_training_client(LLAMA, rank=4).result()) for _ in range(2))
    assert any((tensor != second[name]).any() for name, tensor in first.items())


def test_overwriting_replaces_a_state_and_what_came_from_the_old_one_stays(
    service_client, server, trained, data, tensors
):
    client = trained()
    path = client.save_state("best").result().path
    early = service_client.create_training_client_from_state(path).result()
    before, old_folder = tensors(early), server.folder(path)
    step(client, data.supervised(9), learning_rate=0.1)
    with pytest.raises(tinker.RequestFailedError, match="exists and never changes"):
        client.save_state("best").result()
    assert client.save_state("best", overwrite=True).result().path == path
    late = service_client.create_training_client_from_state(path).result()
    assert_same(tensors(late), tensors(client))
    assert_same(tensors(early), before)
    assert not old_folder.exists()


@pytest.fixture
def restartable(server, folders, tmp_path):
    running = type(server)(folders, tmp_path / "data")
    yield running
    running.stop()


def restart(running):
    running.stop()
    running.start()


def scores(service_client, prompt, **source):
    return service_client.create_sampling_client(**source).result().compute_logprobs(prompt).result()


def test_everything_saved_outlives_a_restart(restartable, data):
    batch, prompt = data.supervised(9, 5), tinker.ModelInput.from_ints([5, 6, 7, 8])
    with restartable.client() as service_client:
        client = service_client.create_lora_training_client(LLAMA, rank=4).result()
        step(client, batch, learning_rate=0.05)
        state = client.save_state("state").result().path
        sampler = client.save_weights_for_sampler("sampler").result().path
        expected_scores = scores(service_client, prompt, model_path=sampler)
        assert expected_scores != scores(service_client, prompt, base_model=LLAMA)
        step(client, batch, **STEPS[0])
        expected = restartable.tensors(client.save_state("later").result().path)
        expected_loss = client.forward(batch, "cross_entropy").result().metrics
    restart(restartable)
    with restartable.client() as service_client:
        found = scores(service_client, prompt, model_path=sampler)
        assert found[1:] == pytest.approx(expected_scores[1:], rel=1e-6)
        resumed = service_client.create_training_client_from_state_with_optimizer(state).result()
        step(resumed, batch, **STEPS[0])
        assert_close(restartable.tensors(resumed.save_state("later").result().path), expected, 1e-6)
        assert resumed.forward(batch, "cross_entropy").result().metrics == pytest.approx(expected_loss, rel=1e-6)
        with pytest.raises(tinker.RequestFailedError, match="exists and never changes"):
            resumed.save_state("later").result()


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_state_is_refused_and_loads_again_once_it_is_repaired(service_client, server, trained, tensors, file):
    client = trained()
    path = client.save_state("state").result().path
    place = -10 if file.endswith("safetensors") else 30
    flip(server.folder(path) / file, place)
    message = f"the checkpoint 'state' (is damaged: {file} is not what was written|cannot be read)"
    before = tensors(client)
    with pytest.raises(tinker.RequestFailedError, match=message) as refused:
        service_client.create_training_client_from_state(path).result()
    assert refused.value.category == "server"
    with pytest.raises(tinker.RequestFailedError, match=message):
        client.load_state_with_optimizer(path).result()
    assert_same(tensors(client), before)
    flip(server.folder(path) / file, place)
    resumed = service_client.create_training_client_from_state_with_optimizer(path).result()
    assert_same(tensors(resumed), before)


def test_a_damaged_snapshot_is_not_sampled_from_and_is_once_it_is_repaired(service_client, server, trained):
    """A flipped bit in a weight changes what is sampled, and nothing else would notice."""
    path = trained().save_weights_for_sampler("snapshot").result().path
    prompt = tinker.ModelInput.from_ints([5, 6, 7])
    flip(server.folder(path) / "adapter_model.safetensors", -10)
    sampler = service_client.create_sampling_client(model_path=path).result()
    message = "the checkpoint 'snapshot' is damaged: adapter_model.safetensors is not what was written"
    with pytest.raises(tinker.RequestFailedError, match=message) as refused:
        sampler.compute_logprobs(prompt).result(timeout=60)
    assert refused.value.category == "server"
    flip(server.folder(path) / "adapter_model.safetensors", -10)
    assert len(sampler.compute_logprobs(prompt).result(timeout=60)) == 3


def test_what_a_crash_left_behind_is_in_nobodys_way(restartable, data):
    """A save that died half-way leaves a hidden folder, one that died a moment later a folder that no row knows."""
    with restartable.client() as service_client:
        client = service_client.create_lora_training_client(LLAMA, rank=4).result()
        kind = restartable.folder(client.save_state("first").result().path).parent
        for name in (".second.0123456789abcdef0123456789abcdef", "second"):
            (kind / name).mkdir()
            (kind / name / "adapter_model.safetensors").write_bytes(b"half of it")
        step(client, data.supervised(9), learning_rate=0.05)
        path = client.save_state("second").result().path
        expected = restartable.tensors(path)
    restart(restartable)
    with restartable.client() as service_client:
        resumed = service_client.create_training_client_from_state(path).result()
        assert_same(restartable.tensors(resumed.save_state("same").result().path), expected)
