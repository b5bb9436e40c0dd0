"""vLLM's own HTTP servers, started as an operator would start them for weaver."""

import os
import signal
import socket
import subprocess
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import httpx
from engines import PYTHON
from weaver_vllm.attached import open_attached

from weaver.domain import ModelSource

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
ARGUMENTS = {
    "host": "127.0.0.1",
    "dtype": "float32",
    "kv-cache-memory-bytes": str(64 << 20),
    "max-model-len": "256",
    "max-num-seqs": "32",
    "max-loras": "3",
    "max-lora-rank": "32",
    "logprobs-mode": "processed_logprobs",
    "max-logprobs": "-1",
    "generation-config": "vllm",
}
FLAGS = ("enforce-eager", "enable-lora", "enable-prompt-tokens-details")


class VllmServer:
    """One server's process, and the group of those that it starts."""

    def __init__(self, model, port=None, **arguments):
        self.model, self.port = Path(model), port or free_port()
        given = ARGUMENTS | {name.replace("_", "-"): value for name, value in arguments.items()} | {"model": str(model)}
        flags = FLAGS if (self.model / "tokenizer.json").exists() else (*FLAGS, "skip-tokenizer-init")
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--port", str(self.port), *words]
            + [f"--{flag}" for flag in flags],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.log = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def wait(self):
        """Until it answers."""
        for line in self.process.stdout:
            self.log.append(line)
            if "Application startup complete" in line:
                Thread(target=self.log.extend, args=(self.process.stdout,), daemon=True).start()
                return self
        raise AssertionError("vLLM did not start:\n" + "".join(self.log[-40:]))

    def kill(self):
        """And all that it has started; also where some have ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def again(self):
        """Another one in its place."""
        self.kill()
        return VllmServer(self.model, self.port)

    def get(self, path):
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=60)

    def metric(self, name, having=""):
        """The sum over its labels, of those that have some words in them."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{") and having in line)

    def served(self):
        """How many calls for samples it has answered."""
        return self.metric("http_requests_total", "completions")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def serving(*servers):
    """Started side by side, and ended whatever happens."""
    try:
        yield [server.wait() for server in servers]
    finally:
        for server in servers:
            server.kill()


def until_begun(*futures):
    """Until servers have all of them."""
    for future in futures:
        while not (future.begun or future.done()):
            wait([future], 0.01)


def attach(*servers, model=None, slots=None):
    source = ModelSource("tiny", str(model or servers[0].model), "cpu", "float32")
    return open_attached(source, [server.url for server in servers], slots)
