"""`weaver serve` with a backend in processes: whatever ends the server ends them."""

import signal
import subprocess
import sys

import psutil
import pytest
import tinker

SECONDS = 60
ENDLESS_RANK = 15
"""At which the plugin's backend never comes back."""


@pytest.fixture
def server(tmp_path):
    """The server and its URL."""
    model = ["--model", "echo=echo", "--backend", "echoes", "--ranks", "2", "--sampler", "echo"]
    command = [sys.executable, "-m", "weaver.server.cli", "serve", "--port", "0", "--data-dir", str(tmp_path), *model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().split()[3]
        process.kill()


def ranks(server):
    return [one for one in psutil.Process(server.pid).children() if "weaver.workers.rank" in one.cmdline()]


def until_started(process):
    found = []
    while len(found) < 2:
        assert process.poll() is None
        found = ranks(process)
    return found


def test_a_server_that_ends_takes_its_processes_with_it(server):
    process, url = server
    client = tinker.ServiceClient(base_url=url, api_key="tml-test")
    client.create_lora_training_client("echo", rank=4).result()
    mine = until_started(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert psutil.wait_procs(mine, SECONDS)[1] == []


@pytest.mark.parametrize("rank", [4, ENDLESS_RANK], ids=["idle", "in a call that never ends"])
def test_a_server_that_is_killed_leaves_no_process_behind(server, rank, deaths):
    process, url = server
    client = tinker.ServiceClient(base_url=url, api_key="tml-test")
    model = client.create_lora_training_client("echo", rank=rank)
    if rank == ENDLESS_RANK:
        while len(list(deaths.iterdir())) < 2:
            assert process.poll() is None
    else:
        model.result()
    mine = until_started(process)
    process.kill()
    assert psutil.wait_procs(mine, SECONDS)[1] == []
