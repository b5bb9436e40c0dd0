"""The process: begin, run, and end with the server."""

import os
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from queue import SimpleQueue
from types import ModuleType
from typing import NoReturn

from .errors import Missing, kind_of
from .frames import Channel, Message


def main(descriptor: int) -> NoReturn:
    """Serve whoever holds the other end of the socket. Ends the process, and those that vLLM has started."""
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    inbox: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_receive, args=(channel, inbox), name="weaver-receive", daemon=True).start()
    status = 0
    try:
        _serve(channel, inbox)
    except Exception:  # noqa: BLE001 -- nothing is known of an engine after an error: the server starts another
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve(channel: Channel, inbox: "SimpleQueue[Message]") -> None:
    settings = inbox.get()
    try:
        opened = _with_vllm("opening").open_engine(settings)
    except Exception as error:  # noqa: BLE001 -- the server tells whoever waits, with the last lines of the log
        traceback.print_exc()
        channel.send({"is": "unopened", "kind": kind_of(error), "text": str(error)})
        return
    channel.send({"is": "ready", "rank": opened.max_lora_rank})
    _with_vllm("loop").Loop(opened, settings, channel, inbox).run()


def _with_vllm(module: str) -> ModuleType:
    """A module that needs vLLM: that it is missing must be told in words."""
    try:
        return import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        raise Missing(str(error)) from error


def _receive(channel: Channel, inbox: "SimpleQueue[Message]") -> None:
    """Hand on what arrives. A server that is gone tells nobody: then the process ends, whatever it is doing."""
    while (message := channel.receive()) is not None:
        inbox.put(message)
    if os.getpgrp() == os.getpid():  # a group of its own: those that vLLM has started end too
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
