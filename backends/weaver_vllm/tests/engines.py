"""Engines for tests: real processes of vLLM on tiny random models, and what is asked of them.

`make test-vllm` builds the environment; another is named by WEAVER_VLLM_PYTHON.
"""

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from weaver_vllm import OPTIONS
from weaver_vllm.opening import FIRST_RANK, settings_of
from weaver_vllm.process import EngineProcess
from weaver_vllm.sampler import VllmSampler

from weaver.domain import AdapterRef, ModelSource, SampleRequest, SamplingParams
from weaver.options import effective_options

BUILT = Path(__file__).parents[3] / ".venvs/vllm"
PYTHON = os.environ.get("WEAVER_VLLM_PYTHON") or (str(BUILT / "bin/python") if (BUILT / ".installed").exists() else "")
ARGUMENTS = {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 64}
SECONDS = 500
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GREEDY = SamplingParams(12, temperature=0.0, stop_token_ids=())
DRAWN = SamplingParams(12, seed=7, stop_token_ids=())


def source_of(folder, **arguments):
    """A model with options complete, as the sampler is opened on."""
    pairs = tuple(f"{name}={value}" for name, value in (ARGUMENTS | arguments).items())
    options = effective_options("sampler", "vllm", OPTIONS, {"vllm_python": PYTHON, "vllm_arg": pairs})
    return ModelSource("tiny", str(folder), "cpu", "float32", options)


def open_engine(folder, heard=lambda process, message: None, rank=FIRST_RANK, **arguments):
    """A sampler; `heard` is told what its processes say before the sampler is, or instead where it says "lost"."""
    settings = settings_of(source_of(folder, **arguments))

    def start(largest, told):
        def both(process, message):
            if heard(process, message) != "lost":
                told(process, message)

        return EngineProcess(PYTHON, {**settings, "max_lora_rank": largest}, both)

    return VllmSampler(start, rank)


class Heard:
    """What processes have said, for tests that must know what has happened."""

    def __init__(self):
        self._messages, self._more = [], threading.Condition()

    def __call__(self, process, message):
        with self._more:
            self._messages.append(message)
            self._more.notify_all()

    def of(self, kind):
        """The numbers of the requests that were spoken of."""
        return [message["id"] for message in self._messages if message is not None and message["is"] == kind]

    def next(self, kind, before):
        """The number that comes after these."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.of(kind)) > len(before), SECONDS)
            return self.of(kind)[len(before)]


def prompt(seed, length=9, vocabulary=128):
    return np.random.default_rng(seed).integers(2, vocabulary, length)


def ask(number=0, params=GREEDY, adapter=None, samples=1, length=9, **more):
    changed = {name: more.pop(name) for name in list(more) if hasattr(params, name)}
    return SampleRequest(prompt(number, length), samples, replace(params, **changed), adapter, **more)


def draw(sampler, *requests):
    """Results of requests that are all there before any is waited for."""
    futures = [sampler.sample(request) for request in requests]
    return [future.result(SECONDS) for future in futures]


def tokens(result):
    return [sequence.tokens.tolist() for sequence in result.sequences]


def write_adapter(model, folder, rank, targets, std=0.2, seed=0, **config):
    """By peft, with nothing zero in it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    made = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **config))
    torch.manual_seed(seed)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=std)
    made.save_pretrained(folder, save_embedding_layers=False)
    return AdapterRef(folder.name, folder)
