"""Every field of a sample through the vendor's SDK, on a trained adapter, against transformers + peft."""

import numpy as np
import pytest
import tinker
import torch

LLAMA = "tiny/llama"
VOCABULARY = 97
TOLERANCE = 1e-4
PROMPT = [int(token) for token in np.random.default_rng(1).integers(2, VOCABULARY, 90)]


@pytest.fixture
def sampled(trained, reference):
    """A sampler on a trained adapter, and the whole model's logits for any tokens by an independent computation."""
    client = trained(LLAMA)
    sampler = client.save_weights_and_get_sampling_client().result()
    model = reference(client, LLAMA).model

    def logits(tokens):
        with torch.no_grad():
            return model(input_ids=torch.tensor(tokens)[None]).logits[0].double()

    return sampler, logits


def sample(sampler, prompt=PROMPT, samples=1, include_prompt_logprobs=False, topk_prompt_logprobs=0, **options):
    names = {"max_tokens", "temperature", "top_k", "top_p", "seed", "stop"}
    params = {"max_tokens": 1, "stop": []} | {name: value for name, value in options.items() if name in names}
    asked = {name: value for name, value in options.items() if name not in names}
    future = sampler.sample(
        tinker.ModelInput.from_ints(prompt), samples, tinker.SamplingParams(**params), include_prompt_logprobs,
        topk_prompt_logprobs, **asked,
    )  # fmt: skip
    return future.result(timeout=60)


def test_the_likeliest_tokens_beside_each_sampled_one(sampled):
    sampler, logits = sampled
    response = sample(sampler, samples=2, max_tokens=6, temperature=0.7, topk_sample_logprobs=4)
    for sequence in response.sequences:
        expected = (logits(PROMPT + sequence.tokens)[len(PROMPT) - 1 : -1] / 0.7).log_softmax(1).topk(4)
        assert [[token for token, _ in row] for row in sequence.topk_logprobs] == expected.indices.tolist()
        np.testing.assert_allclose(sequence.topk_logprobs_np.logprobs, expected.values, atol=TOLERANCE)


def test_tokens_that_could_not_be_drawn_are_not_among_the_likeliest(sampled):
    sampler, _ = sampled
    [sequence] = sample(sampler, max_tokens=3, top_k=2, topk_sample_logprobs=5).sequences
    for row, token, logprob in zip(sequence.topk_logprobs, sequence.tokens, sequence.logprobs, strict=True):
        likeliest = dict(row)
        assert likeliest.pop(0, -99999.0) == -99999.0  # what this wire has for an empty cell
        assert len(likeliest) == 2
        assert likeliest[token] == pytest.approx(logprob, abs=1e-6)


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_given_tokens_are_scored_at_given_positions(sampled, layout):
    sampler, logits = sampled
    ids = torch.full((len(PROMPT) - 1, 3), -1, dtype=torch.int64)
    ids[20] = torch.tensor([7, 0, 96])
    ids[88, 1] = 11
    given = tinker.TensorData.from_torch(ids) if layout == "dense" else tinker.TensorData.from_torch_sparse(ids, -1)
    assert (given.sparse_crow_indices is not None) == (layout == "sparse")
    response = sample(sampler, temperature=0.2, include_prompt_logprobs=True, target_prompt_logprobs=given)
    found = response.target_prompt_logprobs
    assert (found.sparse_crow_indices is not None) == (layout == "sparse")
    assert list(found.shape) == [89, 3]
    expected = torch.zeros(89, 3, dtype=torch.float64)
    logprobs = logits(PROMPT).log_softmax(1)
    for row, column in (ids >= 0).nonzero().tolist():
        expected[row, column] = logprobs[row, ids[row, column]]
    np.testing.assert_allclose(found.to_torch(), expected, atol=TOLERANCE)
    own = logprobs[:-1].gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    np.testing.assert_allclose(response.prompt_logprobs[1:], own, atol=TOLERANCE)


def test_alternatives_to_the_prompts_tokens_and_their_logprobs(sampled):
    sampler, logits = sampled
    first, again = (sample(sampler, temperature=0.5, seed=3, prompt_alt_tokens_k=4).prompt_alt_tokens for _ in range(2))
    tokens = first.tokens.to_torch()
    assert tokens.dtype == torch.int64
    assert tokens.shape == (89, 4)
    assert torch.equal(tokens, again.tokens.to_torch())
    expected = logits(PROMPT)[:-1].log_softmax(1).gather(1, tokens)
    np.testing.assert_allclose(first.logprobs.to_torch(), expected, atol=TOLERANCE)
    assert len({tuple(draws) for draws in tokens.T.tolist()}) > 1


def test_only_the_end_of_a_prompt_is_scored(sampled):
    sampler, logits = sampled
    found = sampler.compute_logprobs(tinker.ModelInput.from_ints(PROMPT), prompt_logprobs_last_n=3).result(timeout=60)
    assert found[:-3] == [None] * 87
    expected = logits(PROMPT)[-4:-1].log_softmax(1).gather(1, torch.tensor(PROMPT[-3:])[:, None])[:, 0]
    np.testing.assert_allclose(found[-3:], expected, atol=TOLERANCE)
    response = sample(sampler, include_prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=3)
    assert [row is None for row in response.topk_prompt_logprobs] == [True] * 87 + [False] * 3


def test_each_sequence_has_an_id_of_its_own(sampled):
    sampler, _ = sampled
    responses = [sample(sampler, samples=3) for _ in range(2)]
    assert len({sequence.sequence_id for response in responses for sequence in response.sequences}) == 6
    request = tinker.types.SampleRequest(
        sampling_session_id=sampler._sampling_session_id, seq_id=10**6, num_samples=2,
        prompt=tinker.ModelInput.from_ints(PROMPT), sampling_params=tinker.SamplingParams(max_tokens=1),
    )  # fmt: skip

    async def submit():
        with sampler.holder.aclient(tinker.lib.client_connection_pool_type.ClientConnectionPoolType.SAMPLE) as client:
            return await client.sampling.asample(request=request)

    first, repeat = (sampler.holder.run_coroutine_threadsafe(submit()).result(timeout=60) for _ in range(2))
    assert first.sample_sequence_ids == repeat.sample_sequence_ids
    assert len(set(first.sample_sequence_ids)) == 2


def test_what_was_cached_of_a_prompt_is_counted(sampled):
    sampler, _ = sampled
    first, again, longer = (sample(sampler, prompt, samples=2) for prompt in (PROMPT, PROMPT, [*PROMPT, 5, 6, 7]))
    counted = [response.prompt_cache_hit_tokens for response in (first, again, longer)]
    assert counted == [0, len(PROMPT) - 1, len(PROMPT)]
