"""Inflight samplers through the vendor's SDK: their weights are those of the last save, snapshots keep theirs."""

import httpx
import numpy as np
import pytest
import tinker
import torch

LLAMA = "tiny/llama"
PROMPT = [int(token) for token in np.random.default_rng(2).integers(2, 97, 100)]


def logprobs(sampler):
    return sampler.compute_logprobs(tinker.ModelInput.from_ints(PROMPT)).result(timeout=60)[1:]


@pytest.fixture
def expected(reference):
    """The prompt's logprobs at the training client's weights of this moment."""

    def compute(client):
        with torch.no_grad():
            logits = reference(client, LLAMA).model(input_ids=torch.tensor(PROMPT)[None]).logits[0]
        return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]

    return compute


def train(client, data):
    client.forward_backward(data.supervised(9, 5), "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=0.05)).result()


def test_a_save_updates_every_inflight_sampler_of_its_model_and_no_snapshot(trained, data, expected):
    client, other = trained(), trained()
    snapshot = client.save_weights_and_get_sampling_client().result()
    first = client.save_weights_and_get_sampling_client(kind="inflight").result()
    others = other.save_weights_and_get_sampling_client(kind="inflight").result()
    old = expected(client)
    train(client, data)
    unpublished = logprobs(first)
    second = client.save_weights_and_get_sampling_client(kind="inflight").result()
    new = expected(client)
    assert not np.allclose(old, new, atol=1e-2)
    np.testing.assert_allclose(unpublished, old, atol=1e-4)  # a step alone changes no sampler
    np.testing.assert_allclose(logprobs(second), new, atol=1e-4)
    np.testing.assert_allclose(logprobs(first), new, atol=1e-4)
    np.testing.assert_allclose(logprobs(snapshot), old, atol=1e-4)
    np.testing.assert_allclose(logprobs(others), expected(other), atol=1e-4)


def test_a_generation_spans_an_update_and_the_new_client_has_the_new_weights_alone(trained, data, expected):
    client = trained()
    first = client.save_weights_and_get_sampling_client(kind="inflight").result()
    prompt, params = tinker.ModelInput.from_ints(PROMPT), tinker.SamplingParams(max_tokens=150, stop=[], seed=1)
    running = first.sample(prompt, 64, params)
    for _ in range(3):
        train(client, data)
        newest = client.save_weights_and_get_sampling_client(kind="inflight").result()
        last = tinker.SamplingParams(max_tokens=1)
        options = {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 20}
        found = newest.sample(prompt, 1, last, **options).result(timeout=60)
        np.testing.assert_allclose(found.prompt_logprobs[-20:], expected(client)[-20:], atol=1e-4)
    sequences = running.result(timeout=60).sequences
    assert [len(sequence.tokens) for sequence in sequences] == [150] * 64


def test_a_repeat_after_an_update_gets_the_first_ones_ticket(server, trained, data):
    client = trained()
    sampler = client.save_weights_and_get_sampling_client(kind="inflight").result()
    body = {
        "sampling_session_id": sampler._sampling_session_id,
        "seq_id": 7,
        "prompt": {"chunks": [{"tokens": PROMPT}]},
        "sampling_params": {"max_tokens": 2},
    }

    def ask():
        answer = httpx.post(f"{server.url}/api/v1/asample", json=body, headers={"X-API-Key": "tml-test"}, timeout=60)
        return answer.json()["request_id"]

    first = ask()
    train(client, data)
    client.save_weights_and_get_sampling_client(kind="inflight").result()
    assert ask() == first
