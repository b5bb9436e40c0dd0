"""One real server in a process of its own, as the command `weaver serve` starts it, and the table at the end."""

import pytest

from tests.serving import serving_command
from tests.tiny_models import write_llama

MODEL = "tiny/llama"
TABLE = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def server(model_folder, tmp_path_factory):
    """URL and model of a server that all versions share."""
    with serving_command(tmp_path_factory.mktemp("data"), "--model", f"{MODEL}={model_folder}") as url:
        yield url, MODEL


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
