"""The unmodified tinker SDK against a real server on a loopback port, with the echo plugins behind it."""

import os
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest
import tinker

MODEL = "some/echo"
KEY = "tml-anything"


@pytest.fixture(scope="module")
def client(url):
    with tinker.ServiceClient(base_url=url, api_key=KEY) as made:
        yield made


@pytest.fixture
def training(client):
    return client.create_lora_training_client(MODEL, rank=8, seed=7).result()


def datum(targets, weights=None):
    weights = np.ones(len(targets), np.float32) if weights is None else weights
    inputs = {"target_tokens": np.array(targets), "weights": np.asarray(weights, np.float32)}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints([1] * len(targets)), loss_fn_inputs=inputs)


def loss_of(training, data):
    return training.forward(data, "cross_entropy").result().metrics["loss:sum"]


def test_the_server_says_what_it_offers(url):
    (model,) = tinker.RestClient(base_url=url, api_key=KEY).get_server_capabilities().result().supported_models
    assert (model.model_name, model.max_context_length, model.trainable, model.sampleable) == (MODEL, 512, True, True)


def test_a_new_model_tells_its_settings(training):
    info = training.get_info()
    assert re.fullmatch(r"[^:]+:train:\d+", info.model_id)
    assert (info.model_data.model_name, info.model_data.arch, info.lora_rank) == (MODEL, "Echo", 8)


def test_training_lowers_the_loss(training):
    data = [datum([1, 2, 3]), datum([2, 2])]
    before = loss_of(training, data)
    assert before == pytest.approx(5 * np.log(100), rel=1e-5)
    for _ in range(3):
        passed, stepped = (
            training.forward_backward(data, "cross_entropy"),
            training.optim_step(tinker.AdamParams(learning_rate=0.5)),
        )
        assert [output["logprobs"].to_numpy().shape for output in passed.result().loss_fn_outputs] == [(3,), (2,)]
        assert stepped.result().metrics["grad_norm"] > 0
    assert loss_of(training, data) < before / 2


def test_chunks_of_one_call_add_up(client, training):
    """1500 datums are two requests, and the second reaches the server first."""
    data = [datum([index % 100]) for index in range(1500)]
    result = training.forward_backward(data, "cross_entropy").result()
    assert len(result.loss_fn_outputs) == 1500
    assert result.metrics["loss:sum"] == pytest.approx(1500 * np.log(100), rel=1e-5)


def test_targets_may_be_several_per_token_and_sparse(training):
    import torch

    weights = torch.zeros(3, 20)
    weights[1, 4] = -2.0
    targets = torch.arange(60).reshape(3, 20)
    result = training.forward_backward(
        [tinker.Datum(tinker.ModelInput.from_ints([1, 2, 3]), {"target_tokens": targets, "weights": weights})],
        "cross_entropy",
    ).result()
    assert result.loss_fn_outputs[0]["logprobs"].to_numpy().shape == (3, 20)
    assert result.metrics["loss:sum"] == pytest.approx(-2 * np.log(100), rel=1e-5)


def test_a_custom_loss_trains(training):
    import torch

    def squared(data, logprobs):
        return sum((lp**2).sum() for lp in logprobs), {"mine": 1.0}

    result = training.forward_backward_custom([datum([5, 6])], squared).result()
    assert result.metrics["loss:sum"] == pytest.approx(2 * np.log(100) ** 2, rel=1e-5)
    assert torch.isfinite(torch.tensor(training.optim_step(tinker.AdamParams()).result().metrics["grad_norm"]))


def test_a_saved_state_is_resumed_with_its_optimizer(client, training):
    data = [datum([9, 9, 9])]
    training.forward_backward(data, "cross_entropy").result()
    training.optim_step(tinker.AdamParams(learning_rate=0.5)).result()
    path = training.save_state("resume").result().path
    assert re.fullmatch(r"tinker://[^/]+/weights/resume", path)
    resumed = client.create_training_client_from_state_with_optimizer(path).result()
    assert loss_of(resumed, data) == loss_of(training, data)
    for one in (training, resumed):
        one.optim_step(tinker.AdamParams(learning_rate=0.5)).result()
    assert loss_of(resumed, data) == loss_of(training, data)


def test_sampling_from_fresh_weights(training):
    sampler = training.save_weights_and_get_sampling_client().result()
    prompt = tinker.ModelInput.from_ints([3, 4, 5])
    params = tinker.SamplingParams(max_tokens=4, stop=[])
    response = sampler.sample(prompt, 2, params, include_prompt_logprobs=True, topk_prompt_logprobs=2).result()
    assert [sequence.tokens for sequence in response.sequences] == [[3, 4, 5, 3]] * 2
    assert [sequence.stop_reason for sequence in response.sequences] == ["length", "length"]
    assert len({sequence.sequence_id for sequence in response.sequences}) == 2
    assert response.prompt_logprobs == [None, 0.0, 0.0]
    assert response.topk_prompt_logprobs == [None, [(4, 0.0)], [(5, 0.0)]]


def test_sampling_from_the_base_model_and_a_saved_snapshot(client, training):
    path = training.save_weights_for_sampler("snapshot").result().path
    assert re.fullmatch(r"tinker://[^/]+/sampler_weights/snapshot", path)
    prompt = tinker.ModelInput.from_ints([7, 8])
    for source in ({"base_model": MODEL}, {"model_path": path}):
        sampler = client.create_sampling_client(**source).result()
        assert sampler.get_base_model() == MODEL
        assert sampler.compute_logprobs(prompt).result() == [None, 0.0]
        stopped = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=9, stop=[8])).result().sequences[0]
        assert (stopped.tokens, stopped.stop_reason) == ([7, 8], "stop")


def test_many_samples_at_once_all_arrive(client):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    params = tinker.SamplingParams(max_tokens=2, stop=[])
    futures = [sampler.sample(tinker.ModelInput.from_ints([index % 99 + 1]), 1, params) for index in range(100)]
    assert [future.result().sequences[0].tokens for future in futures] == [[index % 99 + 1] * 2 for index in range(100)]


def test_a_refused_pass_is_told_at_once_and_training_goes_on(training):
    image = tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=1)
    with_image = tinker.Datum(tinker.ModelInput(chunks=[image]), {"target_tokens": np.array([1])})
    with pytest.raises(tinker.BadRequestError, match=r"data\[0\].model_input\[0\] is of type image"):
        training.forward_backward([with_image], "cross_entropy").result(timeout=60)
    assert training.optim_step(tinker.AdamParams()).result(timeout=60).metrics["grad_norm"] == 0


def test_a_model_nobody_serves_is_refused_with_the_names_there_are(client):
    with pytest.raises(tinker.BadRequestError, match=MODEL):
        client.create_lora_training_client("no/such").result(timeout=60)


def test_a_failure_while_running_says_whose_it_is(client):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    params = tinker.SamplingParams(max_tokens=2, stop="text")
    with pytest.raises(tinker.RequestFailedError, match="the sampler 'echo' has no tokenizer") as failed:
        sampler.sample(tinker.ModelInput.from_ints([1]), 1, params).result(timeout=60)
    assert failed.value.category == "user"


def test_a_retry_gets_the_same_future(url, training):
    body = {"model_id": training.get_info().model_id, "seq_id": 1, "adam_params": {"learning_rate": 0.1}}
    tickets = [httpx.post(f"{url}/api/v1/optim_step", json=body).json() for _ in range(2)]
    assert tickets[0] == tickets[1]


def test_the_command_serves_until_it_is_told_to_stop(tmp_path):
    arguments = ["serve", "--port", "0", "--model", f"{MODEL}=echo:vocab=100", "--backend", "echo", "--sampler", "echo"]
    command = [sys.executable, "-m", "weaver.server.cli", *arguments, "--data-dir", str(tmp_path), "--api-key", "tml-x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        ready = re.fullmatch(
            r"weaver \S+ ready: (http://127\.0\.0\.1:\d+) serving some/echo\n", process.stdout.readline()
        )
        assert httpx.get(f"{ready[1]}/api/v1/healthz").json() == {"status": "ok"}
        with tinker.ServiceClient(base_url=ready[1], api_key="tml-x") as client:
            assert client.create_lora_training_client(MODEL).result().get_info().model_name == MODEL
        with pytest.raises(tinker.AuthenticationError):
            tinker.ServiceClient(base_url=ready[1], api_key="tml-y").create_lora_training_client(MODEL).result(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
