"""The command line refuses what it cannot do before anything is loaded."""

import pytest
from click.testing import CliRunner

from weaver.backend import ModelSource
from weaver.errors import InvalidInput
from weaver.server import cli
from weaver.server.cli import is_loopback, weaver
from weaver.server.model_sources import model_sources
from weaver.server.serve import listening_socket, url_of


def refusal(*arguments):
    result = CliRunner().invoke(weaver, ["serve", *arguments])
    assert result.exit_code == 1
    return result.output.strip()


def test_another_machines_door_needs_a_key():
    assert refusal("--host", "0.0.0.0") == (
        "Error: --host 0.0.0.0 lets other machines in: give --api-key tml-..., or use 127.0.0.1"
    )


def test_a_key_that_the_sdk_would_not_send_is_refused_without_being_repeated():
    said = refusal("--api-key", "tml-good", "--api-key", "secret")
    assert said == "Error: --api-key number 2 must begin with 'tml-': Tinker's SDK sends no other"


def test_a_model_is_given_once_and_whole():
    assert "given twice" in refusal("--model", "a=x", "--model", "a=y")
    assert "must be NAME or NAME=HUB_ID_OR_FOLDER" in refusal("--model", "a=")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("::", False), ("my.host", False)],
)
def test_loopback_is_known_by_its_address(host, local):
    assert is_loopback(host) is local


def test_models_are_named_and_the_demo_is_served_without_any():
    assert model_sources(("Qwen/Qwen3-8B=/tmp/a=b", "org/m"), "cpu", "auto") == (
        ModelSource("Qwen/Qwen3-8B", "/tmp/a=b", "cpu", "auto"),
        ModelSource("org/m", "org/m", "cpu", "auto"),
    )
    (demo,) = model_sources((), "auto", "float32")
    assert (demo.name, demo.location) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "demo")


def test_a_taken_port_is_refused_by_name():
    with listening_socket("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://127.0.0.1:{port}"
        with pytest.raises(
            InvalidInput, match=f"cannot listen on --host 127.0.0.1 --port {port}: Address already in use"
        ):
            listening_socket("127.0.0.1", port)


def test_leases_and_import_directories_reach_the_server(monkeypatch, tmp_path):
    configs = []
    monkeypatch.setattr(cli, "run_server", lambda config, *_: configs.append(config))
    options = ["--data-dir", str(tmp_path), "--lease-seconds", "12.5", "--import-dir", str(tmp_path)]
    assert CliRunner().invoke(weaver, ["serve", *options]).exit_code == 0
    assert CliRunner().invoke(weaver, ["serve", "--data-dir", str(tmp_path)]).exit_code == 0
    assert [(one.lease_seconds, one.import_dirs) for one in configs] == [(12.5, (tmp_path,)), (3600.0, ())]


@pytest.mark.parametrize("options", [("--lease-seconds", "0"), ("--import-dir", "nowhere/at/all")])
def test_a_lease_without_length_and_a_directory_that_is_not_there_are_refused(options):
    result = CliRunner().invoke(weaver, ["serve", *options])
    assert result.exit_code == 2
    assert options[0] in result.output
