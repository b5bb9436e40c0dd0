"""One loop of supervised and reinforcement learning with whatever version of Tinker's SDK runs it: `loop.py URL MODEL`.

It runs in an environment that holds that SDK and nothing of weaver, so it prints what it found, as JSON, for others to
compare: each step with its numbers, or with the error that ended it.
"""

import importlib.metadata
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path

import numpy as np
import tinker

VOCABULARY, RANK, SEED = 97, 8, 7
OLDEST_WITHOUT_ARCHIVES = (0, 36)
LEARNING_RATE = 0.02


def version():
    return importlib.metadata.version("tinker")


def settled(it):
    """What a future gives; some versions give the thing itself where others give a future of it."""
    return it.result(timeout=60) if hasattr(it, "result") else it


def model_input(*chunks):
    return tinker.ModelInput(chunks=[tinker.types.EncodedTextChunk(tokens=[int(one) for one in it]) for it in chunks])


def datum(tokens, **inputs):
    return tinker.Datum(model_input=tinker.ModelInput.from_ints([int(one) for one in tokens]), loss_fn_inputs=inputs)


def rows(output):
    """The logprobs of each datum, as lists."""
    return [one["logprobs"].to_numpy().tolist() for one in output.loss_fn_outputs]


class Loop:
    """The steps, in order: what begins with `step_` runs, and what it returns must be the same for every version."""

    def __init__(self, url, model):
        self.url, self.model = url, model
        self.service = tinker.ServiceClient(base_url=url, api_key="tml-test")
        self.rest = self.service.create_rest_client()
        rng = np.random.default_rng(3)
        self.data = []
        for length in (9, 5, 14):
            tokens, targets = rng.integers(2, VOCABULARY, (2, length))
            weights = rng.uniform(0.1, 1.5, length).astype(np.float32)
            self.data.append(datum(tokens, target_tokens=targets, weights=weights))
        self.prompt = [int(token) for token in rng.integers(2, VOCABULARY, 7)]

    def loss(self, training=None):
        passed = (training or self.training).forward(self.data, "cross_entropy").result()
        return passed.metrics["loss:sum"]

    def step_01_say_what_there_is(self):
        (found,) = self.service.get_server_capabilities().supported_models
        assert found.model_name == self.model

    def step_02_create(self):
        made = self.service.create_lora_training_client(base_model=self.model, rank=RANK, seed=SEED)
        self.training = settled(made)
        info = self.training.get_info()
        assert (info.model_data.model_name, info.lora_rank, info.is_lora) == (self.model, RANK, True)

    def step_03_supervised(self):
        """With every field of AdamParams set, then with none, which means the documented defaults."""
        losses, logprobs, norms = [], [], []
        full = tinker.AdamParams(
            learning_rate=LEARNING_RATE, beta1=0.8, beta2=0.9, eps=1e-9, weight_decay=0.05, grad_clip_norm=2.5
        )
        plain = tinker.AdamParams(learning_rate=LEARNING_RATE)
        for params in (full, plain, plain, plain, plain, tinker.AdamParams()):
            passed = self.training.forward_backward(self.data, "cross_entropy")
            stepped = self.training.optim_step(params)
            output = passed.result()
            losses.append(output.metrics["loss:sum"])
            logprobs.append(rows(output))
            norms.append(stepped.result().metrics["grad_norm"])
        assert losses == sorted(losses, reverse=True), losses
        assert losses[-1] < 0.9 * losses[0], losses
        for output, given in zip(logprobs[0], self.data):
            assert len(output) == len(given.loss_fn_inputs["weights"].to_numpy())
        assert math.isclose(losses[0], self.expected_loss(logprobs[0]), rel_tol=1e-5)
        return [losses, logprobs, norms]

    def expected_loss(self, logprobs):
        weights = [one.loss_fn_inputs["weights"].to_numpy() for one in self.data]
        return -sum(float(np.dot(lp, given)) for lp, given in zip(logprobs, weights))

    def step_04_forward_changes_nothing(self):
        found = [self.loss(), self.loss()]
        norm = self.training.optim_step(tinker.AdamParams(learning_rate=1e-12)).result().metrics["grad_norm"]
        assert found[0] == found[1]
        assert norm == 0
        return found

    def step_05_other_shapes(self):
        """Several targets per token, a prompt in pieces, lists of numbers, fields that are not set."""
        rng = np.random.default_rng(5)
        targets = rng.integers(2, VOCABULARY, (4, 3))
        weights = rng.uniform(-1, 1, (4, 3)).astype(np.float32)
        many = datum([5, 6, 7, 8], target_tokens=targets, weights=weights)
        inputs = {"target_tokens": [9, 8, 7, 6], "weights": [1.0, 0.0, -0.5, 2.0]}
        pieces = tinker.Datum(model_input=model_input([3, 4], [5], [6]), loss_fn_inputs=inputs)
        output = self.training.forward([many, pieces], "cross_entropy").result()
        assert output.loss_fn_outputs[0]["logprobs"].to_numpy().shape == (4, 3)
        return [output.metrics["loss:sum"], rows(output)]

    def step_06_many_data_in_several_requests(self):
        """More than one request holds: they count as one call, so a norm of its sum comes out."""
        ones = np.ones(1, np.float32)
        data = [datum([2 + i % 90], target_tokens=np.array([2 + i % 50]), weights=ones) for i in range(1100)]
        output = self.training.forward_backward(data, "cross_entropy").result()
        assert len(output.loss_fn_outputs) == len(data)
        norm = self.training.optim_step(tinker.AdamParams(learning_rate=1e-4)).result().metrics["grad_norm"]
        return [output.metrics["loss:sum"], norm]

    def step_07_save_and_load(self):
        self.saved = self.training.save_state("state").result().path
        before = self.loss()
        self.train_once(self.training)
        after = self.loss()
        self.training.load_state(self.saved).result()
        assert self.loss() == before != after
        return [before, after]

    def train_once(self, training):
        training.forward_backward(self.data, "cross_entropy").result()
        training.optim_step(tinker.AdamParams(learning_rate=LEARNING_RATE)).result()

    def step_08_resume(self):
        """From weights alone, and with the optimizer: only then the next step is that of a model never stopped."""
        resumed = settled(self.service.create_training_client_from_state(self.saved))
        with_optimizer = settled(self.service.create_training_client_from_state_with_optimizer(self.saved))
        self.training.load_state_with_optimizer(self.saved).result()
        losses = []
        for training in (resumed, with_optimizer, self.training):
            losses.append([self.loss(training)])
            self.train_once(training)
            losses[-1].append(self.loss(training))
        assert losses[0][0] == losses[1][0] == losses[2][0]
        assert losses[1][1] == losses[2][1] != losses[0][1]
        return losses

    def step_09_sample(self):
        self.sampling = settled(self.training.save_weights_and_get_sampling_client())
        prompt = tinker.ModelInput.from_ints(self.prompt)
        found = []
        for options in ({}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.8, "stop": [3, 4, 5, 6, 7, 8]}):
            params = tinker.SamplingParams(max_tokens=6, seed=11, **options)
            answer = self.sampling.sample(prompt, num_samples=3, sampling_params=params).result()
            assert len(answer.sequences) == 3
            for one in answer.sequences:
                assert one.stop_reason in ("stop", "length")
                assert len(one.tokens) == len(one.logprobs) <= 6
                assert (one.stop_reason == "length") == (one.tokens[-1] not in options.get("stop", [1]))
                found.append([list(one.tokens), list(one.logprobs)])
        return found

    def step_10_prompt_logprobs(self):
        prompt = model_input(self.prompt[:3], self.prompt[3:])
        alone = list(self.sampling.compute_logprobs(prompt).result())
        params = tinker.SamplingParams(max_tokens=1, seed=1, temperature=0.0)
        answer = self.sampling.sample(
            prompt, num_samples=1, sampling_params=params, include_prompt_logprobs=True, topk_prompt_logprobs=3
        ).result()
        assert alone[0] is None
        assert len(alone) == len(self.prompt)
        assert np.allclose(alone[1:], answer.prompt_logprobs[1:], atol=1e-6)
        top = [[list(pair) for pair in row] for row in answer.topk_prompt_logprobs[1:]]
        assert answer.topk_prompt_logprobs[0] is None
        assert [len(row) for row in top] == [3] * (len(self.prompt) - 1)
        assert all(row[0][1] >= row[1][1] >= row[2][1] for row in top)
        return [alone[1:], top]

    def rollouts(self):
        """Samples and what they are worth: every even token earns 1, every odd one costs 1."""
        prompt = tinker.ModelInput.from_ints(self.prompt)
        params = tinker.SamplingParams(max_tokens=8, seed=5, stop=[])
        answer = self.sampling.sample(prompt, num_samples=4, sampling_params=params).result()
        return [(list(one.tokens), list(one.logprobs)) for one in answer.sequences]

    def policy_data(self, rollouts):
        data, before = [], len(self.prompt) - 1
        for tokens, logprobs in rollouts:
            advantages = [1.0 if token % 2 == 0 else -1.0 for token in tokens]
            data.append(
                datum(
                    [*self.prompt, *tokens[:-1]],
                    target_tokens=np.array([*self.prompt[1:], *tokens]),
                    logprobs=np.array([0.0] * before + logprobs, np.float32),
                    advantages=np.array([0.0] * before + advantages, np.float32),
                )
            )
        return data

    def objective(self, rollouts):
        """The mean logprob of rewarded tokens less that of the others."""
        data = self.policy_data(rollouts)
        for_forward = [
            tinker.Datum(
                model_input=one.model_input,
                loss_fn_inputs={
                    "target_tokens": one.loss_fn_inputs["target_tokens"],
                    "weights": one.loss_fn_inputs["advantages"],
                },
            )
            for one in data
        ]
        return -self.training.forward(for_forward, "cross_entropy").result().metrics["loss:sum"]

    def step_11_reinforce(self):
        rollouts = self.rollouts()
        data = self.policy_data(rollouts)
        params = tinker.AdamParams(learning_rate=0.005)
        objectives, losses = [self.objective(rollouts)], []
        for loss, config in (
            ("importance_sampling", None),
            ("ppo", {"clip_low_threshold": 0.7, "clip_high_threshold": 1.4}),
            ("ppo", None),
        ):
            output = self.training.forward_backward(data, loss, config).result()
            self.training.optim_step(params).result()
            losses.append([output.metrics["loss:sum"], rows(output)])
            objectives.append(self.objective(rollouts))
        assert objectives == sorted(objectives), objectives
        assert objectives[0] < objectives[-1]
        assert math.isclose(losses[0][0], -sum(1 - 2 * (t % 2) for one, _ in rollouts for t in one), abs_tol=1e-3)
        return [losses, objectives]

    def step_12_named_snapshot(self):
        self.snapshot = self.training.save_weights_for_sampler("snapshot").result().path
        named = settled(self.service.create_sampling_client(model_path=self.snapshot))
        base = settled(self.service.create_sampling_client(base_model=self.model))
        prompt = tinker.ModelInput.from_ints(self.prompt)
        found = [list(client.compute_logprobs(prompt).result())[1:] for client in (named, base)]
        assert not np.allclose(found[0], found[1], atol=1e-3)
        return found

    def step_13_list_and_publish(self):
        run = self.training.model_id
        listed = self.rest.list_checkpoints(run).result().checkpoints
        assert {one.tinker_path for one in listed} == {self.saved, self.snapshot}
        assert {one.checkpoint_type for one in listed} == {"training", "sampler"}
        assert self.rest.get_training_run(run).result().lora_rank == RANK
        assert run in [one.training_run_id for one in self.rest.list_training_runs().result().training_runs]
        assert self.rest.get_weights_info_by_tinker_path(self.saved).result().base_model == self.model
        self.rest.publish_checkpoint_from_tinker_path(self.snapshot).result()
        self.rest.set_checkpoint_ttl_from_tinker_path(self.snapshot, 7200).result()
        [mine] = [one for one in self.user_checkpoints() if one.tinker_path == self.snapshot]
        assert mine.public
        assert mine.expires_at is not None

    def user_checkpoints(self):
        return self.rest.list_user_checkpoints().result().checkpoints

    def step_14_download(self):
        """Where the version has archives: a real one, with what its command line looks for."""
        if tuple(map(int, version().split(".")[:2])) >= OLDEST_WITHOUT_ARCHIVES:
            assert not hasattr(self.rest, "get_checkpoint_archive_url")
            return
        for path in (self.saved, self.snapshot):
            link = self.rest.get_checkpoint_archive_url_from_tinker_path(path).result()
            assert link.expires.timestamp() > time.time() + 3000
            with urllib.request.urlopen(link.url, timeout=60) as answer:
                content = answer.read()
            assert int(answer.headers["Content-Length"]) == len(content)
            with tarfile.open(fileobj=io.BytesIO(content), mode="r") as archive:
                held = {member.name: archive.extractfile(member).read() for member in archive}
            assert {"adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"} <= held.keys()
            assert json.loads(held["adapter_config.json"])["r"] == RANK
            header = int.from_bytes(held["adapter_model.safetensors"][:8], "little")
            assert "lora_A" in held["adapter_model.safetensors"][8 : 8 + header].decode()

    def step_15_download_by_command(self):
        """As the SDK's command line does it, each version in its own way."""
        environment = os.environ | {"TINKER_API_KEY": "tml-test", "TINKER_BASE_URL": self.url}
        with tempfile.TemporaryDirectory() as folder:
            command = [Path(sys.executable).with_name("tinker"), "checkpoint", "download", self.saved, "-o", folder]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            names = {file.name for file in Path(folder).rglob("*")}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names, names

    def step_16_errors(self):
        """A wrong request is told as the SDK's own exception that names the field; the client goes on after it."""
        loss = self.loss()
        length = self.data[0].model_input.length
        lacking = datum(range(2, 2 + length), weights=np.ones(length, np.float32))
        self.refuses("target_tokens", lambda: self.training.forward_backward([lacking], "cross_entropy"))
        self.refuses("beta", lambda: self.training.forward_backward(self.policy_data(self.rollouts()), "dro"))
        self.refuses("learning_rate", lambda: self.training.optim_step(tinker.AdamParams(learning_rate=-1.0)))
        self.refuses("weights/none", lambda: self.training.load_state(self.saved.replace("/state", "/none")))
        params = tinker.SamplingParams(max_tokens=3, temperature=-1.0)
        prompt = tinker.ModelInput.from_ints(self.prompt)
        self.refuses("temperature", lambda: self.sampling.sample(prompt, 1, params))
        assert self.loss() == loss

    def refuses(self, field, call):
        told = "nothing"
        try:
            call().result(timeout=60)
        except (tinker.APIStatusError, tinker.RequestFailedError) as error:
            told = str(error)
        assert field in told, told

    def step_17_delete(self):
        self.rest.delete_checkpoint_from_tinker_path(self.snapshot).result()
        assert self.snapshot not in [one.tinker_path for one in self.user_checkpoints()]


def run(loop):
    for name in sorted(name for name in dir(loop) if name.startswith("step_")):
        began, numbers, error = time.monotonic(), None, None
        try:
            numbers = getattr(loop, name)()
        except Exception:  # noqa: BLE001
            error = traceback.format_exc()
        taken = time.monotonic() - began
        yield {"step": name.removeprefix("step_"), "numbers": numbers, "error": error, "seconds": taken}


if __name__ == "__main__":
    found = list(run(Loop(*sys.argv[1:])))
    print(json.dumps({"version": version(), "steps": found}))
