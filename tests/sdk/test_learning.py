"""Whole loops, supervised and by reinforcement, on what trainer and sampler must agree about."""

import sys
from importlib import import_module

import numpy as np
import pytest
import tinker
from safetensors.numpy import load_file

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
BOTH = pytest.mark.parametrize("base_model", [LLAMA, QWEN])
PROMPT = tinker.ModelInput.from_ints([5, 6, 7, 8])
GOAL = range(2, 26)


def supervised(tokens):
    """Learn to continue: each token predicts the next."""
    inputs = {"target_tokens": np.array(tokens[1:]), "weights": np.ones(len(tokens) - 1, np.float32)}
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)


def policy(prompt, sequence, advantage):
    """A sampled continuation. Positions that predict the prompt have an advantage of zero."""
    tokens, before = [*prompt, *sequence.tokens], len(prompt) - 1
    inputs = {
        "target_tokens": np.array(tokens[1:]),
        "logprobs": np.array([0.0] * before + list(sequence.logprobs), np.float32),
        "advantages": np.array([0.0] * before + [advantage] * len(sequence.tokens), np.float32),
    }
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)


@BOTH
def test_a_supervised_loop_learns_to_count(service_client, base_model):
    client = service_client.create_lora_training_client(base_model, rank=8, seed=1).result()
    data = [supervised([10 + (start + place) % 20 for place in range(9)]) for start in range(0, 20, 2)]
    per_token = []
    for _ in range(12):
        passed = client.forward_backward(data, "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=0.02))
        per_token.append(passed.result().metrics["loss:sum"] / 80)
    assert per_token[0] > np.log(97) / 2
    assert per_token[-1] < per_token[0] / 2
    sampler = client.save_weights_and_get_sampling_client().result()
    greedy = tinker.SamplingParams(max_tokens=4, temperature=0.0, stop=[])
    counted = sampler.sample(tinker.ModelInput.from_ints([14, 15, 16]), 1, greedy).result().sequences[0].tokens
    assert counted == [17, 18, 19, 20]


@BOTH
def test_a_group_relative_policy_loop_learns_what_is_rewarded(service_client, base_model):
    """The reward is the share of tokens that lie in GOAL, a quarter of the vocabulary; advantages are centred."""
    client = service_client.create_lora_training_client(base_model, rank=8, seed=1).result()
    prompts = [[40, 41], [50, 51, 52]]
    rewards = []
    for number in range(15):
        sampler = client.save_weights_and_get_sampling_client().result()
        futures = [
            sampler.sample(
                tinker.ModelInput.from_ints(prompt), 16, tinker.SamplingParams(max_tokens=8, stop=[], seed=number)
            )
            for prompt in prompts
        ]
        groups = [future.result().sequences for future in futures]
        group_rewards = [np.array([np.isin(one.tokens, GOAL).mean() for one in group]) for group in groups]
        client.forward_backward(
            [
                policy(prompt, sequence, reward - group_reward.mean())
                for prompt, group, group_reward in zip(prompts, groups, group_rewards)
                for sequence, reward in zip(group, group_reward)
            ],
            "importance_sampling",
        )
        client.optim_step(tinker.AdamParams(learning_rate=0.02))
        rewards.append(np.mean(group_rewards))
    assert np.mean(rewards[:2]) < 0.45
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.3


@BOTH
def test_sampled_logprobs_are_the_trainers(trained, base_model):
    """On an adapter that is not at its beginning; prompts of several lengths, many samples at once."""
    client = trained(base_model)
    sampler = client.save_weights_and_get_sampling_client().result()
    prompts = [[5], [9, 8, 7, 6], list(range(10, 60))]
    params = tinker.SamplingParams(max_tokens=20, temperature=1.0, stop=[])
    futures = [sampler.sample(tinker.ModelInput.from_ints(prompt), 3, params) for prompt in prompts]
    drawn = [(prompt, one) for prompt, future in zip(prompts, futures) for one in future.result().sequences]
    data = [supervised([*prompt, *one.tokens]) for prompt, one in drawn]
    outputs = client.forward(data, "cross_entropy").result().loss_fn_outputs
    for (prompt, one), output in zip(drawn, outputs, strict=True):
        assert len(one.tokens) == 20
        np.testing.assert_allclose(output["logprobs"].to_numpy()[len(prompt) - 1 :], one.logprobs, atol=1e-4)


@BOTH
def test_scored_logprobs_are_the_trainers(trained, base_model):
    client = trained(base_model)
    tokens = list(range(10, 60))
    scored = (
        client.save_weights_and_get_sampling_client().result().compute_logprobs(tinker.ModelInput.from_ints(tokens))
    )
    output = client.forward([supervised(tokens)], "cross_entropy").result().loss_fn_outputs[0]
    assert scored.result()[0] is None
    np.testing.assert_allclose(scored.result()[1:], output["logprobs"].to_numpy(), atol=1e-4)


def test_a_first_step_on_fresh_samples_has_a_ratio_of_one(trained, data):
    """The loss of importance sampling is then minus the sum of the advantages."""
    client = trained()
    sampler = client.save_weights_and_get_sampling_client().result()
    group = sampler.sample(PROMPT, 4, tinker.SamplingParams(max_tokens=10, stop=[])).result().sequences
    batch = [policy(PROMPT.to_ints(), one, advantage) for one, advantage in zip(group, (1.0, -0.5, 2.0, -1.0))]
    loss = client.forward(batch, "importance_sampling").result().metrics["loss:sum"]
    assert loss == pytest.approx(-10 * (1.0 - 0.5 + 2.0 - 1.0), rel=1e-4)


@BOTH
@pytest.mark.parametrize("named", [True, False])
def test_a_snapshot_never_changes(service_client, trained, data, base_model, named):
    client = trained(base_model)
    if named:
        path = client.save_weights_for_sampler("snapshot").result().path
        sampler = service_client.create_sampling_client(model_path=path).result()
    else:
        sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=6, seed=4, stop=[])

    def look():
        [drawn] = sampler.sample(PROMPT, 1, params).result().sequences
        return sampler.compute_logprobs(PROMPT).result(), drawn.tokens, drawn.logprobs

    before = look()
    for _ in range(3):
        client.forward_backward(data.supervised(9, 5), "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
    assert look() == before
    later = client.save_weights_and_get_sampling_client().result()
    assert later.compute_logprobs(PROMPT).result() != before[0]
    assert look() == before


def test_a_snapshot_has_exactly_the_updates_before_it(trained, data):
    """The updates are not waited for. The snapshot is: the SDK (0.38.0) numbers it when its own thread comes to it,
    and a call that follows at once from ours may get a lower number."""
    client, batch = trained(), data.supervised(9, 5)
    seen = []
    for number in range(3):
        client.forward_backward(batch, "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=0.05))
        path = client.save_weights_for_sampler(f"after-{number}").result().path
        forward = client.forward([supervised(PROMPT.to_ints())], "cross_entropy")
        seen.append((path, forward.result().loss_fn_outputs[0]["logprobs"].to_numpy()))
    for path, logprobs in seen:
        scores = client.create_sampling_client(path).result().compute_logprobs(PROMPT).result()
        np.testing.assert_allclose(scores[1:], logprobs, atol=1e-4)
    assert np.abs(seen[0][1] - seen[1][1]).max() > 0.01 < np.abs(seen[1][1] - seen[2][1]).max()


@BOTH
def test_training_with_sampling_in_between_equals_training_without(server, service_client, data, base_model):
    batches = [data.supervised(9, 5), data.supervised(20), data.supervised(3, 14)]
    ends = []
    for sampling in (False, True):
        client = service_client.create_lora_training_client(base_model, rank=4, seed=3).result()
        samples = []
        for batch in batches:
            passed = client.forward_backward(batch, "cross_entropy")
            if sampling:
                sampler = client.save_weights_and_get_sampling_client().result()
                params = tinker.SamplingParams(max_tokens=30, stop=[])
                samples += [sampler.sample(PROMPT, 2, params) for _ in range(4)]
            passed.result()
            client.optim_step(tinker.AdamParams(learning_rate=0.02)).result()
        assert all(len(sample.result().sequences) == 2 for sample in samples)
        folder = server.folder(client.save_state("end").result().path)
        ends.append({name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()})
    alone, beside = ends
    assert alone.keys() == beside.keys()
    for name, tensor in alone.items():
        assert np.linalg.norm(beside[name] - tensor) <= 1e-6 * np.linalg.norm(tensor), name


GATE = '''
import threading

from weaver.hookspecs import hookimpl
from weaver.loss import Loss, LossInput

entered, opened = threading.Event(), threading.Event()


def waits(logprobs, inputs, config):
    """Cross-entropy that takes until `opened` is set."""
    entered.set()
    assert opened.wait(120)
    return -(logprobs * inputs["weights"]).sum()


@hookimpl
def weaver_losses():
    yield Loss("waits", waits, (LossInput("weights"),))
'''


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """An installed package whose loss, "waits", keeps the trainer busy until the test opens the gate."""
    (tmp_path / "weaver_gate.py").write_text(GATE)
    metadata = tmp_path / "weaver_gate-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: weaver-gate\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[weaver]\ngate = weaver_gate\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = import_module("weaver_gate")
    yield module
    module.opened.set()
    del sys.modules["weaver_gate"]


@pytest.fixture
def gated_server(gate, server, folders, tmp_path):
    running = type(server)(folders, tmp_path / "data")
    yield running
    gate.opened.set()
    running.stop()


def test_sampling_goes_on_while_a_pass_runs(gate, gated_server, data):
    """The pass cannot end before the test lets it, so every sample that is done by then was drawn beside it."""
    with gated_server.client() as service_client:
        client = service_client.create_lora_training_client(LLAMA, rank=4, seed=1).result()
        path = client.save_weights_for_sampler("before").result().path
        running = client.forward_backward(data.supervised(9), "waits")
        queued = [client.forward_backward(data.supervised(200), "cross_entropy") for _ in range(20)]
        step = client.optim_step(tinker.AdamParams())
        assert gate.entered.wait(60)

        for source in ({"model_path": path}, {"base_model": LLAMA}, {"base_model": QWEN}):
            sampler = service_client.create_sampling_client(**source).result(timeout=60)
            futures = [sampler.sample(PROMPT, 2, tinker.SamplingParams(max_tokens=9, stop=[])) for _ in range(5)]
            assert all(len(future.result(timeout=60).sequences) == 2 for future in futures)
            assert len(sampler.compute_logprobs(PROMPT).result(timeout=60)) == 4
        assert not any(future.future().done() for future in (running, *queued, step))

        gate.opened.set()
        assert step.result(timeout=60).metrics["grad_norm"] > 0
        assert all(future.result(timeout=60).metrics for future in (running, *queued))


def test_another_base_model_trains_while_a_pass_runs(gate, gated_server, data):
    with gated_server.client() as service_client:
        client = service_client.create_lora_training_client(LLAMA, rank=4, seed=1).result()
        running = client.forward_backward(data.supervised(9), "waits")
        assert gate.entered.wait(60)
        other = service_client.create_lora_training_client(QWEN, rank=4, seed=1).result(timeout=60)
        other.forward_backward(data.supervised(9), "cross_entropy").result(timeout=60)
        assert other.optim_step(tinker.AdamParams()).result(timeout=60).metrics["grad_norm"] > 0
        assert not running.future().done()
