"""Every dialect of Tinker's protocol: the SDKs themselves, each in an environment of its own, run one loop against one
server and must find the same numbers. `make test-sdks` runs it; `make test` does not, for it installs packages."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from environments import LATEST, VERSIONS, python_of

LOOP = Path(__file__).with_name("loop.py")
TOLERANCE = 1e-5
"""Relative, for numbers above 1. The server computes the same for all, so really there is no difference."""


def numbers(value):
    """All numbers of nested lists, in order."""
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [] if value is None else [value]


def difference(found, expected):
    return abs(found - expected) / max(1.0, abs(expected))


@pytest.fixture(scope="module")
def results(server, table):
    """What a version's loop found, run when first asked for."""
    known = {}

    def run(version):
        if version not in known:
            python, began = python_of(version), time.monotonic()
            done = subprocess.run([python, LOOP, *server], capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, done.stderr[-4000:]
            known[version] = json.loads(done.stdout)
            steps = known[version]["steps"]
            table[version] = {
                "passed": sum(step["error"] is None for step in steps),
                "steps": len(steps),
                "numbers": len(numbers([step["numbers"] for step in steps])),
                "farthest": None,
                "seconds": time.monotonic() - began,
            }
        return known[version]

    return run


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_trains_samples_and_keeps_checkpoints(results, version):
    found = results(version)
    assert found["version"] == version
    errors = {step["step"]: step["error"] for step in found["steps"] if step["error"]}
    assert not errors, "\n\n".join(f"{step}: {error}" for step, error in errors.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_finds_the_numbers_of_the_latest(results, table, version):
    expected, found = results(LATEST)["steps"], results(version)["steps"]
    far = [0.0]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["step"] == theirs["step"]
        pairs = list(zip(numbers(mine["numbers"]), numbers(theirs["numbers"]), strict=True))
        far.append(max((difference(*pair) for pair in pairs), default=0.0))
        assert not math.isnan(far[-1])
        assert far[-1] <= TOLERANCE, f"{mine['step']}: {far[-1]:.1e}"
    table[version]["farthest"] = max(far)


def test_there_are_numbers_to_compare(results):
    assert len(numbers([step["numbers"] for step in results(LATEST)["steps"]])) > 400
