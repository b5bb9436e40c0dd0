"""`make test-plugins` runs the files here; `make test` does not, for they take minutes."""

import sys
from pathlib import Path

import pytest

from weaver.testing.reference import write_model

sys.path.insert(0, str(Path(__file__).parent))

from package_environments import EXAMPLES, ROOT, Environment, run


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """The wheels of weaver and of the examples, by their projects' names."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = [ROOT, *sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))]
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    done = run(*build, "--no-build-isolation", "--wheel-dir", folder, *sources)
    assert done.returncode == 0, done.stderr
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in folder.iterdir()}


@pytest.fixture(scope="session")
def new_environment(wheels, tmp_path_factory):
    """A maker of clean environments."""

    def make():
        return Environment(tmp_path_factory.mktemp("environment"), wheels["weaver-train"])

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a tiny random model."""
    return write_model("llama", tmp_path_factory.mktemp("tiny") / "llama")
