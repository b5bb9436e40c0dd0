"""However a program ends, it ends: no thread keeps it, and its session is finished."""

import signal
import sqlite3
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
}
BEGIN = """
import sys
import weaver.compat.tinker as tinker
client = tinker.ServiceClient()
"""
TRAIN = f"""{BEGIN}
trainer = client.create_lora_training_client(sys.argv[1], rank=4, seed=1).result()
inputs = {{"target_tokens": [3, 4, 5] * 60, "weights": [1.0] * 180}}
datum = tinker.Datum(tinker.ModelInput.from_ints([2, 3, 4] * 60), inputs)
"""
QUEUE = f"{TRAIN}futures = [trainer.forward_backward([datum] * 50, 'cross_entropy') for _ in range(500)]\n"
SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model in a folder, which is its name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def start(model, tmp_path, monkeypatch):
    """Starts a program; what it leaves is in `tmp_path`."""
    monkeypatch.setenv("WEAVER_DATA_DIR", str(tmp_path))

    def started(code):
        command = [sys.executable, "-c", code, str(model)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
        )

    return started


def _interruptible():
    """A shell's background jobs ignore interrupts, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(program):
    """Its status and what it wrote as errors, once it has ended."""
    try:
        _, errors = program.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    return program.returncode, errors


def sessions(folder):
    with sqlite3.connect(folder / "weaver.sqlite") as database:
        return [row[0] for row in database.execute("select ended from sessions")]


def checkpoints(folder):
    with sqlite3.connect(folder / "weaver.sqlite") as database:
        return [row[0] for row in database.execute("select name from checkpoints")]


def test_a_client_that_was_never_used(start, tmp_path):
    assert ended(start(BEGIN)) == (0, "")
    assert not (tmp_path / "weaver.sqlite").exists()


def test_what_was_accepted_still_happens(start, tmp_path):
    code = f"""{TRAIN}
for _ in range(10):
    trainer.forward_backward([datum] * 4, "cross_entropy")
    trainer.optim_step(tinker.AdamParams())
trainer.save_state("last")
"""
    assert ended(start(code))[0] == 0
    assert checkpoints(tmp_path) == ["last"]
    assert sessions(tmp_path) == ["success"]


def test_samples_that_nobody_waits_for(start, tmp_path):
    code = f"""{TRAIN}
sampler = trainer.save_weights_and_get_sampling_client().result()
params = tinker.SamplingParams(max_tokens=200, stop=[])
futures = [sampler.sample(tinker.ModelInput.from_ints([2, n]), 16, params) for n in range(2, 50)]
"""
    assert ended(start(code))[0] == 0
    assert sessions(tmp_path) == ["success"]


def test_while_the_model_is_being_created(start):
    assert ended(start(f"{BEGIN}\nclient.create_lora_training_client(sys.argv[1])\n"))[0] == 0


def test_an_error_does_not_wait(start, tmp_path):
    code = f"{QUEUE}1 / 0\n"
    status, errors = ended(start(code))
    assert status == 1
    assert errors.rstrip().endswith("ZeroDivisionError: division by zero")
    assert sessions(tmp_path) == ["errored"]


def test_an_interrupt_while_waiting(start, tmp_path):
    code = f"{QUEUE}print('waiting', flush=True)\nfutures[-1].result()\n"
    program = start(code)
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(signal.SIGINT)
    status, errors = ended(program)
    assert status in (1, 130, -signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    assert sessions(tmp_path) == ["interrupted"]


def test_a_custom_loss_that_waits_for_ever(start):
    code = f"""{TRAIN}
import threading
def loss(data, logprobs):
    print("waiting", flush=True)
    threading.Event().wait()
trainer.forward_backward_custom([datum], loss)
trainer.optim_step(tinker.AdamParams()).result()
"""
    program = start(code)
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(signal.SIGINT)
    assert ended(program)[0] in (1, 130, -signal.SIGINT)


def test_a_block_that_closed_everything(start, tmp_path):
    code = f"{BEGIN}with client:\n    client.create_lora_training_client(sys.argv[1], rank=4).result()\n"
    assert ended(start(code)) == (0, "")
    assert sessions(tmp_path) == ["success"]


def test_a_server_that_is_not_there(start, monkeypatch):
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TINKER_API_KEY", "tml-x")
    assert ended(start(f"{BEGIN}\nclient.create_lora_training_client(sys.argv[1])\n"))[0] == 0
