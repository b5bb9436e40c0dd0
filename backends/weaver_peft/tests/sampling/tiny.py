"""Tiny random models, requests on them, and what the results should be, from transformers and peft alone."""

from concurrent.futures import Future

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from weaver_peft.decoding import Limits

from weaver.domain import SampleRequest, SamplingParams

GIB = 1 << 30
LIMITS = Limits(rows=64, cache_bytes=GIB, adapter_bytes=GIB, prefill_tokens=1024, busy_prefill_tokens=256)
SIZES = {
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": 5,
    "bos_token_id": 1,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def prompt(seed, length=9):
    return np.random.default_rng(seed).integers(6, SIZES["vocab_size"], length)


def ask(length=9, seed=0, samples=1, adapter=None, **params):
    given = {"max_tokens": 12, "stop_token_ids": ()}
    return SampleRequest(prompt(seed, length), samples, SamplingParams(**given | params), adapter)


def add(loop, request):
    future = Future()
    loop.add(request, future)
    return future


def run(loop, *requests):
    futures = [add(loop, request) for request in requests]
    finish(loop)
    return [future.result(timeout=0) for future in futures]


def finish(loop):
    while not loop.is_idle:
        loop.step()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(tokens)[None]).logits[0].double()


def expected_logprobs(model, request, sequence):
    """What each drawn token's logprob should be, from one forward over prompt and sample: the definition, by itself."""
    prompt_n, params = request.prompt_n, request.params
    tokens = [*prompt_n.tolist(), *sequence.tokens.tolist()]
    logits = logits_of(model, tokens[:-1])[len(prompt_n) - 1 :]
    return [distribution(row, params)[token].log().item() for row, token in zip(logits, sequence.tokens)]


def distribution(logits_V, params):
    if params.temperature == 0:
        return logits_V.softmax(0)
    probabilities = (logits_V / params.temperature).softmax(0).tolist()
    ranked = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    whole, mass, kept = sum(probabilities[token] for token in ranked), 0.0, []
    for token in ranked:
        kept.append(token)
        mass += probabilities[token] / whole
        if mass >= params.top_p:
            break
    result = torch.zeros(len(probabilities), dtype=torch.float64)
    for token in kept:
        result[token] = probabilities[token]
    return result / result.sum()


def same(one, other):
    return [each.tokens.tolist() for each in one.sequences] == [each.tokens.tolist() for each in other.sequences]


def expected_prompt_logprobs(model, prompt_n):
    """Of the prompt's tokens but the first."""
    return logits_of(model, prompt_n).log_softmax(1)[:-1].gather(1, torch.tensor(prompt_n[1:, None]))[:, 0]


def with_peft(folder, adapter):
    """The model as peft computes it."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter.folder).eval()
