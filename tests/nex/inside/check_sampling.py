"""What is drawn, and how prompts are scored."""

import math

import pytest
import torch
from support import SMOL, TINY, logprobs_of, sentence
from transformers import AutoModelForCausalLM
from weaver.score_centering import validate_sampler_sequence

from weaver import WeaverAPIError, types

PROMPT = types.ModelInput.from_ints([5, 6, 7, 8])


@pytest.fixture(scope="module")
def sampler(service):
    """Of the base model."""
    return service.create_sampling_client(base_model=TINY)


@pytest.fixture(scope="module")
def model(service):
    return service.create_model(base_model=TINY, lora_config=types.LoraConfig(rank=4))


def draw(sampler, **fields):
    params = types.SamplingParams(**{"max_tokens": 6, **fields})
    return sampler.sample(prompt=PROMPT, sampling_params=params)["sequences"][0]


def test_a_sample_has_all_that_callers_read(sampler):
    found = sampler.sample(
        prompt=PROMPT, sampling_params=types.SamplingParams(max_tokens=3, seed=1), num_samples=4,
        include_prompt_logprobs=True, topk_prompt_logprobs=2,
    )  # fmt: skip
    assert len(found["sequences"]) == 4
    for sequence in found["sequences"]:
        assert 1 <= len(sequence["tokens"]) == len(sequence["logprobs"]) <= 3
        assert sequence["stop_reason"] in ("stop", "length")
        assert isinstance(sequence["text"], str)
        assert "old_logprobs" not in sequence
    assert found["usage"]["prompt_tokens"] == 4
    assert found["usage"]["completion_tokens"] == sum(len(one["tokens"]) for one in found["sequences"])
    assert found["weight_version"] == TINY
    assert found["raw_result"]["prompt_logprobs"][0] is None
    scored = sampler.compute_logprobs(prompt=PROMPT)
    assert found["raw_result"]["prompt_logprobs"][1:] == pytest.approx(scored[1:], abs=1e-5)
    assert [len(row or []) for row in found["raw_result"]["topk_prompt_logprobs"]] == [0, 2, 2, 2]


def test_stops_and_seeds(sampler):
    first = draw(sampler, seed=4)
    assert draw(sampler, seed=4)["tokens"] == draw(sampler, sampling_seed=4)["tokens"] == first["tokens"]
    stopped = draw(sampler, seed=4, stop=[first["tokens"][2]])
    assert stopped["tokens"] == first["tokens"][:3]
    assert stopped["stop_reason"] == "stop"
    greedy = [draw(sampler, temperature=0.0)["tokens"] for _ in range(2)]
    assert greedy[0] == greedy[1] == draw(sampler, top_k=1)["tokens"]
    with pytest.raises(WeaverAPIError, match="seed is 1 and sampling_seed 2"):
        draw(sampler, seed=1, sampling_seed=2)
    with pytest.raises(WeaverAPIError, match=r"top_p is 1\.5"):
        draw(sampler, top_p=1.5)


def test_the_end_token_stops_beside_those_that_are_named(sampler):
    """Token 1 ends this model's texts; naming another does not switch that off."""
    ends = [draw(sampler, seed=seed, max_tokens=200, stop=[96]) for seed in range(12)]
    assert all(one["stop_reason"] == "stop" for one in ends)
    assert {one["tokens"][-1] for one in ends} == {1, 96}


def test_old_logprobs_are_told_where_they_are_the_models_own(sampler):
    params = types.SamplingParams(max_tokens=4)
    [found] = sampler.sample(prompt=PROMPT, sampling_params=params, return_old_logprob=True)["sequences"]
    assert found["old_logprobs"] == found["logprobs"]
    with pytest.raises(WeaverAPIError, match="return_old_logprob"):
        sampler.sample(prompt=PROMPT, sampling_params=types.SamplingParams(top_k=3), return_old_logprob=True)


def test_score_centering_tells_the_head_of_each_distribution(sampler):
    params = types.SamplingParams(max_tokens=5, score_centering={"head_size": 8})
    [found] = sampler.sample(prompt=PROMPT, sampling_params=params)["sequences"]
    validate_sampler_sequence(found, 8, "inline")
    by_ref = types.SamplingParams(max_tokens=5, score_centering={"head_size": 8, "transport": "ref"})
    with pytest.raises(WeaverAPIError, match="answers inline only"):
        sampler.sample(prompt=PROMPT, sampling_params=by_ref)


def test_masks_tell_what_each_token_was_drawn_among(sampler):
    """The logprobs of a row's tokens that come with nothing cut off, renormalised, are those that were told."""
    params = types.SamplingParams(max_tokens=6, seed=2, top_p=0.6)
    asked = {"prompt": PROMPT, "sampling_params": params, "num_samples": 2}
    masked = sampler.sample(**asked, return_sampling_mask=True)["sequences"]
    plain = sampler.sample(**asked)["sequences"]
    assert [one["tokens"] for one in masked] == [one["tokens"] for one in plain]
    assert all("sampling_masks" not in one for one in plain)
    for sequence in masked:
        masks = sequence["sampling_masks"]
        assert len(masks) == len(sequence["tokens"])
        assert all(token in row and row == sorted(row) for token, row in zip(sequence["tokens"], masks, strict=True))
        context = PROMPT.to_ints()
        for token, row, told in zip(sequence["tokens"], masks, sequence["logprobs"], strict=True):
            scored = [sampler.compute_logprobs(prompt=types.ModelInput.from_ints([*context, one]))[-1] for one in row]
            share = sum(map(math.exp, scored))
            assert told == pytest.approx(scored[row.index(token)] - math.log(share), abs=1e-3)
            assert share >= 0.6 - 1e-4
            assert share - math.exp(min(scored)) < 0.6 + 1e-4
            context = [*context, token]


def test_what_is_not_offered_is_refused_by_its_name(sampler):
    for fields in (
        {"return_sampling_mask": True, "sampling_mask_transport": "ref"},
        {"return_moe_topk_indices": True},
    ):
        with pytest.raises(WeaverAPIError, match=list(fields)[-1]) as refused:
            sampler.sample(prompt=PROMPT, **fields)
        assert refused.value.status_code == 400
    with pytest.raises(WeaverAPIError, match="return_rollout_token_expert"):
        sampler.compute_logprobs(prompt=PROMPT, logprobs_params=types.LogprobsParams(return_rollout_token_expert=True))
    with pytest.raises(WeaverAPIError, match="temperature"):
        sampler.compute_logprobs(prompt=PROMPT, logprobs_params=types.LogprobsParams(loss_fn_config={"temperature": 0}))


def test_generation_of_adapters_cannot_be_paused(model):
    sampler = model.save_weights_and_get_sampling_client()
    for control in (sampler.pause_generation, sampler.continue_generation, lambda: sampler.paused().__enter__()):
        with pytest.raises(ValueError, match="only supported for full fine-tuning"):
            control()
    with pytest.raises(WeaverAPIError, match="training_mode 'full_ft' only") as refused:
        sampler._service.http.post(f"/api/v1/sampling-sessions/{sampler.sampling_session_id}/pause-generation")
    assert refused.value.code == "not_offered"


def test_a_handle_of_a_sample_has_the_raw_response(sampler):
    handle = sampler.sample(prompt=PROMPT, sampling_params=types.SamplingParams(max_tokens=2), wait=False)
    assert len(handle.result()["result"]["sequences"][0]["tokens"]) <= 2


def test_the_base_models_logprobs_are_those_of_transformers(service, tokenizer):
    """Computed by nobody's code but transformers', from the folder that the server names as the tokenizer's."""
    tokens = tokenizer.encode("The quick brown fox jumps over the lazy dog")
    independent = AutoModelForCausalLM.from_pretrained(tokenizer.name_or_path, dtype=torch.float32)
    sampler = service.create_sampling_client(base_model=SMOL)
    with torch.no_grad():
        logits = independent(torch.tensor([tokens])).logits[0, :-1]
    for temperature in (1.0, 0.6):
        expected = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
        asked = types.LogprobsParams(loss_fn_config={"temperature": temperature})
        found = sampler.compute_logprobs(prompt=types.ModelInput.from_ints(tokens), logprobs_params=asked)
        assert found[0] is None
        assert found[1:] == pytest.approx(expected, abs=2e-3)
        client = service.create_model(base_model=SMOL, lora_config=types.LoraConfig(rank=2))
        forward = client.forward([sentence(tokens)], "forward_logprob", {"temperature": temperature})
        assert logprobs_of(forward)[0] == pytest.approx(expected, abs=2e-3)
