"""Which tokens each token was drawn among, as clients of Weaver's API are told, in process and over HTTP."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import weaver

from .conftest import MODEL, VOCABULARY

types = weaver.types
PROMPT = [5, 9, 3, 7, 20]


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def sampler(service):
    return service.create_sampling_client(base_model=MODEL)


def sample(sampler, prompt=tuple(PROMPT), mask=True, samples=2, **params):
    asked = types.SamplingParams(**{"max_tokens": 8, "seed": 5, **params})
    told = {"return_sampling_mask": True} if mask else {}
    prompt = types.ModelInput.from_ints(list(prompt))
    return sampler.sample(prompt=prompt, sampling_params=asked, num_samples=samples, **told)["sequences"]


@pytest.mark.parametrize("params", [{"top_k": 6}, {"top_p": 0.7}, {"temperature": 1.4, "top_k": 30, "top_p": 0.8}])
def test_masks_are_those_of_the_models_own_logits(sampler, model, params):
    """The logprob of each token is the model's, scaled, and renormalised over its row."""
    temperature, top_k, top_p = (
        params.get(name, plain) for name, plain in (("temperature", 1), ("top_k", 97), ("top_p", 1))
    )
    for sequence in sample(sampler, **params):
        tokens, masks = sequence["tokens"], sequence["sampling_masks"]
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + tokens[:-1]])).logits[0, len(PROMPT) - 1 :].double().numpy()
        assert len(masks) == len(tokens) == len(logits)
        for row, token, told, logits_V in zip(masks, tokens, sequence["logprobs"], logits / temperature, strict=True):
            order = np.argsort(-logits_V)[:top_k]
            shares = np.exp(logits_V[order]) / np.exp(logits_V[order]).sum()
            count = int((np.cumsum(shares) - shares < top_p).sum())
            assert row == sorted(order[:count].tolist())
            assert 0 < len(row) < VOCABULARY
            assert told == pytest.approx(logits_V[token] - np.log(np.exp(logits_V[row]).sum()), abs=1e-4)


def test_masks_come_only_where_they_were_asked_for(sampler):
    masked, plain = sample(sampler, top_p=0.7), sample(sampler, top_p=0.7, mask=False)
    assert [one["tokens"] for one in masked] == [one["tokens"] for one in plain]
    assert all("sampling_masks" not in one for one in plain)


def test_a_row_is_empty_where_the_whole_vocabulary_was_left(sampler):
    for params in ({}, {"temperature": 0.0, "top_k": 3, "top_p": 0.5}):
        for sequence in sample(sampler, **params):
            assert sequence["sampling_masks"] == [[]] * len(sequence["tokens"])


def test_both_ways_tell_the_same_masks(local, server):
    found = []
    for where in ({}, {"base_url": server}):
        with weaver.ServiceClient(**where) as service:
            found.append(sample(service.create_sampling_client(base_model=MODEL), top_p=0.7))
    one, other = ([each["sampling_masks"] for each in sequences] for sequences in found)
    assert one == other


def test_a_handle_has_them_too(sampler):
    asked = types.SamplingParams(max_tokens=3, top_k=2)
    prompt = types.ModelInput.from_ints(PROMPT)
    handle = sampler.sample(prompt=prompt, sampling_params=asked, return_sampling_mask=True, wait=False)
    [sequence] = handle.result()["result"]["sequences"]
    assert [len(row) for row in sequence["sampling_masks"]] == [2] * len(sequence["tokens"])


def test_score_centering_goes_without_masks(sampler, service):
    """The client says so; a server that is asked all the same refuses it by name."""
    head = types.ScoreCenteringConfig(head_size=5)
    with pytest.raises(ValueError, match="score_centering goes with neither sampling masks"):
        sample(sampler, score_centering=head)
    body = {
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
        "sampling_params": {"max_tokens": 2},
        "score_centering": {"head_size": 5},
        "return_sampling_mask": True,
    }
    with pytest.raises(weaver.WeaverAPIError, match=r"score_centering needs .* return_sampling_mask"):
        service.http.post(f"/api/v1/sampling-sessions/{sampler.sampling_session_id}/samples", json=body)
