"""No [tokens, vocabulary] tensor outlives a chunk: what the output layer adds to a pass's peak memory."""

import json
import subprocess
import sys

import pytest

TOKENS, VOCABULARY = 8192, 50_000

MEASURE = '''
import ctypes, json, sys
from pathlib import Path
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
from weaver.backend import Pass
from weaver.plugins.losses import weaver_losses
from weaver.domain import Datum, LoraSpec, ModelSource
from weaver_peft.base_model import load_base_model
from weaver_peft.call import Call, Segment
from weaver_peft.packing import PackedAttention
from weaver_peft.trainer import PeftBackend

tokens, vocabulary, loss_name, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
LlamaForCausalLM(LlamaConfig(
    vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=tokens,
)).save_pretrained(folder)
base = load_base_model(ModelSource("tiny", folder, "cpu"))
backend = PeftBackend(base)
backend.create_model("m", LoraSpec(rank=8, seed=1))
rng = np.random.default_rng(0)
inputs = {name: rng.normal(size=tokens).astype(np.float32) for name in ("weights", "logprobs", "advantages")}
loss = {each.name: each for each in weaver_losses()}[loss_name]
given = {each.name: inputs[each.name] for each in loss.inputs}
ids = rng.integers(0, vocabulary, tokens + 1)
one = Pass("m", [Datum(ids[:-1], {"target_tokens": ids[1:], **given})], loss, loss.effective_config({}), True)

def resident(key):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key)).split()[1])

def peak_of(run):
    """Peak resident kilobytes of `run` above what was resident before it."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before

def decoder_alone():
    call = Call((Segment(0, tokens, backend._models["m"].pairs),), PackedAttention([tokens], base.device))
    hidden = base.hidden_states(torch.from_numpy(ids[:-1]), torch.arange(tokens), call)
    parameters = [p for name, p in backend._models["m"].parameters.items() if "lm_head" not in name]
    torch.autograd.grad(hidden, parameters, torch.ones_like(hidden))

def whole_pass():
    [result] = backend.forward_backward([one])
    assert result.logprobs[0].shape == (tokens,), result

decoder_alone()  # warm: thread pools and allocator
print(json.dumps({"decoder": peak_of(decoder_alone), "whole": peak_of(whole_pass)}))
'''


@pytest.mark.parametrize("loss", ["ppo"])
def test_the_output_layer_adds_less_than_a_third_to_the_peak_memory_of_a_pass(tmp_path, loss):
    command = [sys.executable, "-c", MEASURE, str(TOKENS), str(VOCABULARY), loss, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    peaks = json.loads(printed)
    print(loss, peaks, f"ratio {peaks['whole'] / peaks['decoder']:.2f}")
    assert peaks["whole"] < 1.3 * peaks["decoder"]
    logits = TOKENS * VOCABULARY * 4 / 1024
    assert peaks["decoder"] < logits, "the decoder's own memory would hide a whole tensor of logits"
