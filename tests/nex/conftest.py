"""One real server, as the command `weaver serve` starts it, and one run of the SDK's tests in its environment."""

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))

from environment import INSIDE, KEY, PYTHON, SMOL, TINY, checks

VOCABULARY = 97


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random model whose tokens are the words w0, w1, ..."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
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
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w1")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def url(tiny_folder, tmp_path_factory):
    command = [sys.executable, "-m", "weaver.server.cli", "serve", "--port", "0", "--device", "cpu", "--api-key", KEY]
    models = ["--model", f"{SMOL}=demo", "--model", f"{TINY}={tiny_folder}"]
    data = ["--data-dir", str(tmp_path_factory.mktemp("data"))]
    with subprocess.Popen([*command, *models, *data], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            yield re.search(r"ready: (http://\S+) ", process.stdout.readline())[1]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.fixture(scope="session")
def inside(url, tmp_path_factory):
    """What the tests inside found: by name what failed ("" where nothing did), and their numbers and files."""
    out = tmp_path_factory.mktemp("inside")
    report, numbers = out / "report.xml", out / "numbers.json"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", ""),
        "PYTHONPATH": str(INSIDE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
        "WEAVER_BASE_URL": url,
        "WEAVER_API_KEY": KEY,
        "WEAVER_OPERATION_POLL_INTERVAL": "0.05",
        "NEX_NUMBERS": str(numbers),
        "NEX_OUT": str(out),
    }
    options = ["-p", "support", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", INSIDE, "--confcutdir", INSIDE]
    command = [PYTHON, "-m", "pytest", *options, "-q", "--tb=short", f"--junitxml={report}", *checks()]
    # From there, for python -m puts the folder it is started in, and so our own weaver, first.
    done = subprocess.run(command, cwd=INSIDE, env=environment, capture_output=True, text=True, timeout=1500)
    assert report.exists(), done.stdout[-4000:] + done.stderr[-2000:]
    outcomes = {_name(case): _failure(case) for case in ET.parse(report).iter("testcase")}
    return outcomes, json.loads(numbers.read_text()), out


def _name(case):
    return f"{case.get('classname').rpartition('.')[2]}::{case.get('name').partition('[')[0]}"


def _failure(case):
    return "\n".join(found.text or found.get("message", "") for found in case if found.tag in ("failure", "error"))
