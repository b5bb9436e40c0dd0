"""A virtual environment for each version of the SDK: that version and what it imports, nothing else."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The first and the last that write JSON, both sides of every change of the protocol, and the latest, which comes first.
LATEST = "0.38.0"
OTHERS = ("0.34.0", "0.30.4", "0.26.2", "0.24.1", "0.22.7", "0.18.2", "0.16.1")
VERSIONS = (LATEST, *(os.environ.get("WEAVER_TEST_SDKS", "").split() or OTHERS))

_REQUIRED = "import importlib.metadata as m; print(*m.requires('tinker'), sep='\\n')"


def python_of(version):
    """The environment's interpreter; the environment is made unless it is there already, whole."""
    folder = ROOT / ".venvs" / f"sdk-{version}"
    python, whole = folder / "bin" / "python", folder / ".whole"
    if not whole.exists():
        _run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder)
        _install(python, "--no-deps", f"tinker=={version}")
        _install(python, *_needed(_run(python, "-c", _REQUIRED).splitlines()))
        whole.touch()
    return python


def _needed(requirements):
    """Without the extras, and without transformers, which only tokenizers need: the loop brings token ids. 0.18.0 and
    0.18.1 import orjson and do not say so."""
    wanted = [one for one in requirements if "extra ==" not in one and not one.startswith("transformers")]
    return [*wanted, "orjson"]


def _install(python, *what):
    _run(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "-q", *what)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} failed: {done.stderr[-2000:]}"
    return done.stdout
