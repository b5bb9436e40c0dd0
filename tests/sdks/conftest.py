"""One real server in a process of its own, as the command `weaver serve` starts it, and the table at the end."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MODEL = "tiny/llama"
TABLE = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    folder = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(model_folder, tmp_path_factory):
    """URL and model of a server that all versions share."""
    command = [sys.executable, "-m", "weaver.server.cli", "serve", "--port", "0", "--device", "cpu"]
    options = ["--model", f"{MODEL}={model_folder}", "--data-dir", str(tmp_path_factory.mktemp("data"))]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            yield re.search(r"ready: (http://\S+) ", process.stdout.readline())[1], MODEL
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.fixture(scope="session")
def table(pytestconfig):
    """What each version did, for the summary."""
    return pytestconfig.stash.setdefault(TABLE, {})


def pytest_terminal_summary(terminalreporter, config):
    found = config.stash.get(TABLE, {})
    if not found:
        return
    terminalreporter.section("tinker's SDKs against one server")
    terminalreporter.line(f"{'SDK':<8} {'steps':>7} {'numbers':>8} {'farthest':>9} {'seconds':>8}")
    for version, row in found.items():
        steps = f"{row['passed']}/{row['steps']}"
        far = "-" if row["farthest"] is None else f"{row['farthest']:.0e}"
        terminalreporter.line(f"{version:<8} {steps:>7} {row['numbers']:>8} {far:>9} {row['seconds']:>8.1f}")
    terminalreporter.line(f"farthest: the largest relative difference of a number from that of {next(iter(found))}")
