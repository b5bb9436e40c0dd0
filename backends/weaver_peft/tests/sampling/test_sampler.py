from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from weaver_peft.base_model import load_base_model
from weaver_peft.call import Call, Segment
from weaver_peft.decoding import DecodeLoop
from weaver_peft.lora import initial_pair
from weaver_peft.packing import PackedAttention
from weaver_peft.sampler import EmbeddedSampler, open_sampler

from weaver.backend import ModelSource
from weaver.domain import SampleRequest, SamplingParams, StopReason
from weaver.errors import Stopped

from .tiny import LIMITS, ask, expected_logprobs, prompt, run, same


def test_the_sampler_draws_on_its_own_thread_and_stops(folder):
    sampler = open_sampler(ModelSource("tiny", str(folder), device="cpu"))
    assert len(sampler.sample(ask()).result(timeout=60).sequences[0].tokens) == 12
    running = sampler.sample(ask(max_tokens=400))
    sampler.close()
    with pytest.raises(Stopped, match="the sampler is shutting down"):
        running.result(timeout=60)
    with pytest.raises(Stopped, match="the sampler is shutting down"):
        sampler.sample(ask()).result(timeout=60)


def test_an_unexpected_error_reaches_the_requests_it_hit_and_the_thread_goes_on(base):
    sampler = EmbeddedSampler(base, LIMITS)
    outside = replace(ask(), prompt_n=np.array([1, 10_000]))  # the service would have refused it
    with pytest.raises(IndexError):
        sampler.sample(outside).result(timeout=60)
    assert len(sampler.sample(ask()).result(timeout=60).sequences[0].tokens) == 12
    sampler.close()


def test_sampling_while_training_draws_what_it_draws_alone(base, adapters):
    requests = [
        ask(30, seed=seed, temperature=0, max_tokens=60, adapter=each) for seed, each in enumerate(adapters.values())
    ]
    alone = run(DecodeLoop(base, LIMITS), *requests)
    sampler = EmbeddedSampler(base, LIMITS)
    futures = [sampler.sample(request) for request in requests]
    losses = set()
    while not all(future.done() for future in futures):
        losses.add(train(base))
    sampler.close()
    assert all(same(one, future.result(timeout=0)) for one, future in zip(alone, futures))
    assert losses <= {train(base)}


def train(base):
    """A forward and a backward of an adapter, on the modules that the sampler uses too; a number that sums it up."""
    sizes = {module.name: (module.in_features, module.out_features) for module in base.modules}
    pairs = {name: initial_pair(name, *size, rank=4, seed=1, scale=1.0) for name, size in sizes.items()}
    adapter = {name: replace(pair, a=pair.a.requires_grad_(), b=pair.b + 0.1) for name, pair in pairs.items()}
    tokens = torch.tensor(prompt(9, 20))
    call = Call((Segment(0, 20, adapter),), PackedAttention([20], base.device), recompute=True)
    base.hidden_states(tokens, torch.arange(20), call).square().sum().backward()
    return sum(pair.a.grad.sum().item() for pair in adapter.values() if pair.a.grad is not None)


@pytest.mark.demo_model
def test_the_demo_model_answers_as_it_does_in_transformers():
    source = ModelSource("demo", "demo", device="cpu")
    folder = load_base_model(source).facts.tokenizer_location
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt_n = np.array(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    model = AutoModelForCausalLM.from_pretrained(folder)
    greedy = SampleRequest(prompt_n, 1, SamplingParams(20, temperature=0))
    drawn = SampleRequest(prompt_n, 2, SamplingParams(20, temperature=0.8, top_p=0.9, stop_strings=("Paris",)))
    loop = DecodeLoop(load_base_model(source), LIMITS)
    answer, samples = run(loop, greedy, drawn)
    generated = model.generate(torch.tensor(prompt_n)[None], max_new_tokens=20, do_sample=False)[0, len(prompt_n) :]
    assert answer.sequences[0].tokens.tolist() == generated.tolist()
    assert answer.sequences[0].stop_reason is StopReason.STOP
    for sequence in samples.sequences:
        np.testing.assert_allclose(sequence.logprobs, expected_logprobs(model, drawn, sequence), atol=1e-4)
        text = tokenizer.decode(sequence.tokens)
        assert (sequence.stop_reason is StopReason.STOP) == (text.endswith("Paris") or text.endswith("<|im_end|>"))
