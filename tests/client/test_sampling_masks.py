"""Which tokens each token was drawn among, as clients of Weaver's API are told, in process and over HTTP."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import weaver
from tests.tiny_models import VOCABULARY
from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.errors import NotOffered
from weaver.compat.weaver_wire.sampling import _masks
from weaver.domain import SampledSequence, StopReason

from .conftest import MODEL, new_model

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
    for sequence in sample(sampler):
        assert sequence["sampling_masks"] == [[]] * len(sequence["tokens"])


def drawn_datum(sequence, *, mask=True):
    """What was drawn, as it is trained on: the prompt's targets do not count, and were drawn among all."""
    tokens, before = PROMPT + sequence["tokens"], len(PROMPT) - 1
    inputs = {
        "target_tokens": tokens[1:],
        "logprobs": [0.0] * before + sequence["logprobs"],
        "advantages": [0.0] * before + [1.0] * len(sequence["tokens"]),
    }
    inputs |= {"sampling_mask": [[]] * before + sequence["sampling_masks"]} if mask else {}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


@pytest.mark.parametrize("params", [{"top_k": 6}, {"temperature": 0.7, "top_p": 0.8}])
def test_with_its_masks_the_trainer_has_the_distribution_a_sample_was_drawn_from(service, params):
    """On the sampler's own weights every ratio is 1; without the masks it is not."""
    trainer = new_model(service)
    trainer.forward_backward([drawn_datum({"tokens": [3, 4], "logprobs": [-1.0, -1.0]}, mask=False)], "ppo_clip")
    trainer.optim_step(types.AdamParams(learning_rate=0.01))
    sequences = sample(trainer.save_weights_and_get_sampling_client(), samples=3, **params)
    config = {"temperature": params.get("temperature", 1.0)}
    for mask, expected in ((True, True), (False, False)):
        data = [drawn_datum(sequence, mask=mask) for sequence in sequences]
        found = trainer.forward(data, "importance_sampling", config)["result"]["loss_fn_outputs"]
        trained = [output["logprobs"]["data"][len(PROMPT) - 1 :] for output in found]
        drawn = [sequence["logprobs"] for sequence in sequences]
        assert (np.concatenate(trained) == pytest.approx(np.concatenate(drawn), abs=1e-4)) is expected


def test_a_greedy_token_was_drawn_among_itself_and_teaches_nothing(service):
    trainer = new_model(service)
    [sequence] = sample(trainer.save_weights_and_get_sampling_client(), samples=1, temperature=0.0, top_k=3, top_p=0.5)
    assert sequence["sampling_masks"] == [[token] for token in sequence["tokens"]]
    assert min(sequence["logprobs"]) < -0.1
    trainer.forward_backward([drawn_datum(sequence)], "importance_sampling")
    assert trainer.optim_step(types.AdamParams(learning_rate=0.01))["metrics"]["grad_norm"] == 0


def test_a_sampler_that_tells_none_is_no_empty_mask():
    told = SampledSequence(np.array([3]), np.zeros(1, np.float32), StopReason.LENGTH)
    with pytest.raises(NotOffered, match="return_sampling_mask: this server's sampler does not tell"):
        _masks(told, requests.Sample(prompt={}, return_sampling_mask=True))


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
