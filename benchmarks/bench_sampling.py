"""Sampled tokens per second against transformers' `generate`, with the logprobs of every token checked."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from weaver_peft.sampler import open_sampler

from weaver.domain import ModelSource, SampleRequest, SamplingParams

PROMPT, NEW = 60, 64


@pytest.fixture(scope="module")
def sampler(demo):
    opened = open_sampler(ModelSource("demo", demo, "cpu"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def model(demo):
    return AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32).eval()


@pytest.mark.parametrize("streams", [1, 16])
def test_sampling(side_by_side, sampler, model, streams):
    prompts = np.random.default_rng(0).integers(0, 49152, (streams, PROMPT))
    params = SamplingParams(max_tokens=NEW, temperature=1.0, stop_token_ids=())

    def ours():
        futures = [sampler.sample(SampleRequest(prompt, 1, params)) for prompt in prompts]
        return [future.result() for future in futures]

    def theirs():
        with torch.no_grad():
            model.generate(
                torch.from_numpy(prompts),
                attention_mask=torch.ones(prompts.shape, dtype=torch.long),
                do_sample=True, top_k=0, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=2,
            )  # fmt: skip

    for prompt, result in zip(prompts, ours()):
        [sequence] = result.sequences
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *sequence.tokens]])).logits[0, PROMPT - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.from_numpy(sequence.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-3)
    side_by_side(ours, theirs, streams * NEW)
