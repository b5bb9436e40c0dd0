"""The process that vLLM runs in: started, listened to, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final

from weaver.errors import InvalidInput
from weaver_vllm.engine_side.frames import Channel, Message

END_SECONDS: Final = 15.0
"""How long it may take to free everything."""
LOG_LINES: Final = 30
_HERE: Final = Path(__file__).parent
_DEFAULTS: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_ALWAYS: Final = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other one is what `engine_side.worker` knows
    "PYTHONSAFEPATH": "1",
}

Told = Callable[["EngineProcess", Message | None], None]
"""Called on threads of the process's own: with each message, and with None, once, when it has ended."""


class EngineProcess:
    """One child, and the socket to it that only the two hold."""

    def __init__(self, python: str, settings: Mapping[str, Any], told: Told) -> None:
        ours, theirs = socket.socketpair()
        self._channel, self._told = Channel(ours), told
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        with theirs:
            self._child = _started(python, theirs.fileno())
        self._channel.send({"do": "begin", **settings})
        self._receiver = Thread(target=self._receive, name="weaver-vllm-receive", daemon=True)
        self._pump = Thread(target=self._forward_log, name="weaver-vllm-log", daemon=True)
        self._receiver.start()
        self._pump.start()
        Thread(target=self._wait, name="weaver-vllm-wait", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, message: Message) -> None:
        """One that is gone hears nothing; that it has ended is told."""
        with suppress(OSError):
            self._channel.send(message)

    def how(self) -> str:
        """How it ended, in words, and the last lines of its log."""
        status = self._child.returncode
        ended = f"ended with status {status}"
        if status is not None and status < 0:
            ended = f"was ended by signal {-status} ({signal.Signals(-status).name})"
        return "\n".join([f"the process of vLLM ({self.pid}) {ended}", *self._log])

    def close(self) -> None:
        """Let it free everything and end; end it where it does not."""
        self.send({"do": "close"})
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(END_SECONDS)
        self.kill()
        self._child.wait()

    def kill(self) -> None:
        """End it and those that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _receive(self) -> None:
        while (message := self._channel.receive()) is not None:
            self._told(self, message)
        self.kill()

    def _forward_log(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._log.append(line.rstrip())
            sys.stderr.write(line)

    def _wait(self) -> None:
        """What it said last comes before that it has ended."""
        self._child.wait()
        self.kill()  # the rest of its group
        self._receiver.join()
        self._pump.join(1.0)
        self._channel.close()
        self._told(self, None)


def _started(python: str, descriptor: int) -> "subprocess.Popen[str]":
    try:
        # A session of its own: Ctrl-C is for the server, which then ends it.
        return subprocess.Popen(
            [python, "-m", "engine_side", str(descriptor)],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    except OSError as error:
        raise InvalidInput(f"--vllm-python {python} cannot be run: {error.strerror}") from error


def _environment() -> dict[str, str]:
    """Whoever has set something decides. The other environment may lack weaver: what runs there is found here."""
    path = os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH", "")]))
    return {**_DEFAULTS, **os.environ, **_ALWAYS, "PYTHONPATH": path}
