"""docs/tutorial-loss.md, followed to the letter: every command and every file of it, in clean environments."""

import difflib
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from package_environments import ECHO, ROOT, run

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCK = re.compile(r"(?:<!-- (\S+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
[_, *SECTIONS] = re.split(r"^## \d\. .*\n", (ROOT / "docs/tutorial-loss.md").read_text(), flags=re.MULTILINE)
BEGIN, FORMULA, TESTED, SERVER, USED, GONE = ([match.groups() for match in BLOCK.finditer(text)] for text in SECTIONS)
TOKENS = [17, 42, 7, 99, 5, 63]


def commands(section):
    return [code.strip().splitlines() for _, kind, code in section if kind == "bash"]


class Author:
    """Sits in a folder, and types what the tutorial says where the tutorial says."""

    def __init__(self, folder):
        self.folder = folder

    def types(self, environment, *lines, **environ):
        """The last line's output."""
        for line in lines:
            command, *arguments = (word.strip("'") for word in line.split())
            done = environment.run(command, *arguments, cwd=self.folder, **environ)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def writes(self, section):
        for name, kind, code in section:
            if kind == "python":
                (self.folder / name).write_text(code)


@pytest.fixture(scope="module")
def author(tmp_path_factory):
    return Author(tmp_path_factory.mktemp("author"))


@pytest.fixture(scope="module")
def scaffold(author, new_environment):
    """The author's own environment, and the files of the new package as weaver writes them."""
    environment = new_environment()
    [[line]] = commands(BEGIN)
    author.types(environment, line)
    package = author.folder / "weaver-focal"
    return environment, {str(file.relative_to(author.folder)): file.read_text() for file in package.rglob("*.py")}


@pytest.fixture(scope="module")
def wheel_built(author, scaffold):
    """What the author's own tests say; after this, the wheel is in `dist`."""
    environment, _ = scaffold
    author.writes(FORMULA + TESTED)
    [tested] = commands(TESTED)
    said = author.types(environment, *tested)
    author.types(environment, *commands(SERVER)[0])
    return said


@pytest.fixture(scope="module")
def server_environment(author, wheel_built, new_environment):
    """A clean environment with the wheel, and what `weaver plugins show` says there."""
    environment = new_environment()
    return environment, author.types(environment, *commands(SERVER)[1])


@pytest.fixture(scope="module")
def url(server_environment, tiny, tmp_path_factory):
    environment, _ = server_environment
    [command] = commands(SERVER)[2]
    assert command == "weaver serve"
    with environment.serve("--model", f"{MODEL}={tiny}", data_dir=tmp_path_factory.mktemp("served") / "data") as url:
        yield url


def test_the_first_loss_takes_under_fifteen_lines_of_ones_own(scaffold):
    _, written = scaffold
    own = []
    for name, _, code in FORMULA + [block for block in TESTED if block[1] == "python"]:
        compared = difflib.ndiff(written[name].splitlines(), code.splitlines())
        own += [line for line in compared if line.startswith("+ ") and line.strip("+ ")]
    assert 5 <= len(own) < 15, own


def test_its_tests_pass_and_its_record_is_as_the_tutorial_prints_it(wheel_built, server_environment):
    assert "3 passed" in wheel_built
    _, shown = server_environment
    [printed] = [code for _, kind, code in SERVER if kind == "text"]
    assert shown == printed


def losses_printed(text):
    return [float(line) for line in text.split()]


def formula(tiny, gamma):
    """By transformers, at the beginning, where an adapter changes nothing."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([TOKENS[:-1]])).logits[0].softmax(-1).double()
    p = probabilities[torch.arange(5), TOKENS[1:]].numpy()
    return float((-((1 - p) ** gamma) * np.log(p)).sum())


def test_the_vendors_sdk_uses_it_over_http_and_the_drop_in_in_one_process(author, server_environment, url, tiny):
    """The client of the first has neither weaver's wheel nor the package: it is the environment of these tests."""
    environment, _ = server_environment
    author.writes(USED)
    typed, in_process = commands(USED)
    exports, program = typed
    assert exports.split()[0] == "export"
    settings = dict(word.split("=", 1) for word in exports.split()[1:])
    assert settings["TINKER_BASE_URL"] == "http://127.0.0.1:8000"
    client = os.environ | settings | {"TINKER_BASE_URL": url, "TINKER_TELEMETRY": "0"}
    served = run(sys.executable, *program.split()[1:], cwd=author.folder, env=client)
    assert served.returncode == 0, served.stderr
    aliases = {"WEAVER_MODEL_ALIASES": f"{MODEL}={tiny}", "WEAVER_DATA_DIR": str(author.folder / "data")}
    alone = author.types(environment, *in_process, **aliases)
    for found in (losses_printed(served.stdout), losses_printed(alone)):
        assert found[0] == pytest.approx(formula(tiny, 1.5), rel=1e-5)
        assert len(found) == 4
        assert found == sorted(found, reverse=True)


def test_a_slip_is_told_as_the_tutorial_prints_it(url):
    [printed] = [code.strip() for _, kind, code in USED if kind == "text"]
    trainer = tinker.ServiceClient(base_url=url, api_key="tml-local").create_lora_training_client(MODEL).result()
    inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * 5}
    with pytest.raises(tinker.BadRequestError, match=re.escape(printed)):
        trainer.forward_backward(
            [tinker.Datum(tinker.ModelInput.from_ints(TOKENS[:-1]), inputs)], "focal", {"gama": 1.5}
        ).result()


def test_uninstalled_it_is_gone(author, server_environment, tmp_path):
    environment, _ = server_environment
    author.types(environment, *commands(GONE)[0])
    with environment.serve(*ECHO, data_dir=tmp_path / "data") as url:
        trainer = tinker.ServiceClient(base_url=url, api_key="tml-local").create_lora_training_client("m").result()
        inputs = {"target_tokens": TOKENS[1:], "weights": [1.0] * 5}
        data = [tinker.Datum(tinker.ModelInput.from_ints(TOKENS[:-1]), inputs)]
        with pytest.raises(tinker.BadRequestError, match="there is no loss 'focal'; there are: cispo, cross_entropy"):
            trainer.forward_backward(data, "focal", {"gamma": 1.5}).result()
