"""What docs/weaver-api.md says, checked."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import weaver
from weaver.server import cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/weaver-api.md").read_text()
PROGRAM = ROOT / "examples/weaver_api.py"


def run(code, folder=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, *code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_pages_program_is_the_example():
    [program] = re.findall(r"<!-- examples/weaver_api.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert program == PROGRAM.read_text()


def test_the_example_trains(folder, tmp_path):
    aliases = f"HuggingFaceTB/SmolLM2-135M-Instruct={folder}"
    printed = run([str(PROGRAM)], WEAVER_MODEL_ALIASES=aliases, WEAVER_DATA_DIR=str(tmp_path)).stdout
    losses = [float(one) for one in re.findall(r"step \d: (\S+) nats per token", printed)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_every_name_that_the_page_lists_is_where_it_says():
    section = PAGE.partition("## What is where")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`weaver[^|]*) \| (.*) \|$", section, re.MULTILINE)
    assert len(rows) == 6
    found = 0
    for modules, names in rows:
        loaded = [__import__(path, fromlist=["x"]) for path in re.findall(r"`([\w.]+)`", modules)]
        for name in re.findall(r"`(\w+)`", names):
            assert any(hasattr(module, name) for module in loaded), name
            found += 1
    assert found > 15


def test_every_command_that_asks_a_server_is_on_the_page():
    section = PAGE.partition("## The command\n")[2].partition("\n## ")[0]
    groups = ("list", "show", "organizations", "projects", "scope", "checkpoint", "deployment")
    for group in groups:
        rows = "".join(line for line in section.splitlines() if line.startswith("|") and f"`weaver {group} " in line)
        for name in cli.weaver.commands[group].commands:
            assert re.search(rf"`(weaver {group} )?{name}\b", rows), (group, name)


def test_an_environment_with_both_packages_is_warned_of(tmp_path):
    shutil.copytree(
        Path(weaver.__file__).parent, tmp_path / "weaver", ignore=lambda *_: ["__pycache__", "compat", "server"]
    )
    code, path = (
        ["-c", "import weaver; print(weaver.__file__)"],
        {"PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "default"},
    )
    alone = run(code, tmp_path, **path)
    assert alone.stdout.startswith(str(tmp_path))
    assert alone.stderr == ""
    (tmp_path / "weaver/async_service_client.py").touch()
    assert "RuntimeWarning: nex-weaver is installed into the same folder" in run(code, tmp_path, **path).stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weaver.__version__
