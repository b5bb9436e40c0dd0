"""Ranks for tests: real processes on gloo, started once for each layout and asked many things."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "weaver_peft" / "tests"))  # the losses' formulas

import rank_group
import tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny random models by name."""
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def groups(tmp_path_factory):
    """Running ranks by layout: groups(layout)."""
    with rank_group.Groups(tmp_path_factory) as running:
        yield running
