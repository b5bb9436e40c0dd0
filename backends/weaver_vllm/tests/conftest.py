"""Engines and adapters that tests share. Without an environment that has vLLM, they are skipped and say so."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import engines

from weaver.testing.reference import SamplingReference, write_model


@pytest.fixture(scope="session")
def vllm_python():
    if not engines.PYTHON:
        pytest.skip("no environment has vLLM: make test-vllm builds one, WEAVER_VLLM_PYTHON names another")
    return engines.PYTHON


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model whose output layer shares its embeddings, as the demo model's does."""
    return write_model("qwen3", tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="session")
def adapters(folder, tmp_path_factory):
    """By name: of three ranks, two with an adapted output layer."""
    place, linears = tmp_path_factory.mktemp("adapters"), engines.LINEARS
    return {
        "small": engines.write_adapter(folder, place / "small", 4, linears, seed=1),
        "whole": engines.write_adapter(folder, place / "whole", 8, [*linears, "lm_head"], seed=2),
        "head": engines.write_adapter(folder, place / "head", 32, ["lm_head"], seed=3),
    }


@pytest.fixture(scope="session")
def references(folder, adapters):
    """What peft computes; None: the base model."""
    found = {name: SamplingReference(folder, adapter.folder) for name, adapter in adapters.items()}
    return {None: SamplingReference(folder), **found}


@pytest.fixture(scope="session")
def heard():
    """What the shared engine has said."""
    return engines.Heard()


@pytest.fixture(scope="session")
def sampler(vllm_python, folder, heard):
    """One engine for all tests that leave it as it was."""
    opened = engines.open_engine(folder, heard)
    yield opened
    opened.close()
