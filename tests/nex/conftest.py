"""One real server, as the command `weaver serve` starts it, and one run of the SDK's tests in its environment."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.serving import serving_command
from tests.tiny_models import write_llama, write_words

sys.path.insert(0, str(Path(__file__).parent))

from environment import INSIDE, KEY, PYTHON, SMOL, TINY, checks


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random model whose tokens are the words w0, w1, ..."""
    return write_words(write_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="session")
def url(tiny_folder, tmp_path_factory):
    models = ["--model", f"{SMOL}=demo", "--model", f"{TINY}={tiny_folder}"]
    with serving_command(tmp_path_factory.mktemp("data"), "--api-key", KEY, *models) as address:
        yield address


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
