"""The ways of running a recipe: the vendor's SDK against a server, and weaver's own `tinker` in process.

`vllm` is the first with a server that samples with vLLM. It runs where it is asked for.
"""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from place import Place

SERVER, IN_PROCESS, VLLM = "server", "process", "vllm"
WAYS = (SERVER, IN_PROCESS)
ON_DEMAND = (VLLM,)


@dataclass(frozen=True)
class Running:
    """What a recipe is started with: the words before `-m MODULE`, and the environment."""

    command: list[str]
    environment: dict[str, str]
    url: str | None = None

    def forward_backwards(self) -> int | None:
        """How many forward_backward calls the server has run since it started."""
        if self.url is None:
            return None
        sessions = _get(f"{self.url}/api/v1/sessions?limit=100")["sessions"]
        links = [_get(f"{self.url}/api/v1/sessions/{session}/trace_export")["url"] for session in sessions]
        events = [event for link in links for event in _get(link)["traceEvents"]]
        return sum(event["name"].startswith("ForwardBackward") for event in events)


def _end(server: "subprocess.Popen[str]") -> None:
    """As an operator would: it finishes the pass that is running."""
    server.terminate()
    try:
        server.wait(300)
    finally:
        server.kill()
        server.wait()


def _get(url: str) -> dict[str, list[dict[str, str]]]:
    request = urllib.request.Request(url, headers={"X-API-Key": "tml-cookbook"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, list[dict[str, str]]] = json.load(answer)
        return found


@contextmanager
def running(way: str, place: Place, workbench: str, models: Sequence[str]) -> Iterator[Running]:
    """Ready to run recipes by `way`, with `models` (NAME=FOLDER) there to train and sample."""
    if way in (SERVER, VLLM):
        with _serving(place, workbench, models, _vllm() if way == VLLM else ()) as url:
            environment = place.environment(workbench, TINKER_BASE_URL=url, COOKBOOK_PYTHON="python")
            yield Running([place.python], environment, url)
    else:
        aliases = {"WEAVER_MODEL_ALIASES": ",".join(models), "WEAVER_DATA_DIR": str(place.data_dir)}
        command = [*place.weaver, "run"]
        yield Running(command, place.environment(workbench, COOKBOOK_PYTHON=" ".join(command), **aliases))


def _vllm() -> Sequence[str]:
    """Raises RuntimeError where nobody says which Python has vLLM."""
    python = os.environ.get("WEAVER_VLLM_PYTHON")
    if not python:
        raise RuntimeError("WEAVER_VLLM_PYTHON names no Python that has vLLM: make cookbook WAY=vllm builds one")
    return ("--sampler", "vllm", "--vllm-python", python)


@contextmanager
def _serving(place: Place, workbench: str, models: Sequence[str], more: Sequence[str]) -> Iterator[str]:
    """The URL of a real `weaver serve` on a free port, ended as an operator would end it."""
    options = [*(word for model in models for word in ("--model", model)), *more]
    command = [*place.weaver, "serve", "--port", "0", "--data-dir", str(place.data_dir), *options]
    errors = place.folder / "logs/server.log"
    with errors.open("a") as log:
        server = subprocess.Popen(
            command, cwd=place.folder, env=place.environment(workbench), stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            if " ready: " not in ready:
                raise RuntimeError(f"weaver serve did not start: {errors.read_text()[-2000:]}")
            yield ready.split(" ready: ")[1].split()[0]
        finally:
            _end(server)
