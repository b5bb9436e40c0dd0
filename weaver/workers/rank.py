"""One process of a backend: opens it, does what the server calls, and ends when the server does.

Run by `weaver.workers.group` as `python -m weaver.workers.rank FD`; FD is its end of a socket to the server.
"""

import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from weaver.backend import Backend
from weaver.config import prepare_threads
from weaver.domain import ForwardBackwardResult
from weaver.errors import InvalidInput, UnknownName, WeaverError
from weaver.loss import Loss
from weaver.registry import load_registry, losses_for_worker
from weaver.workers.messages import Begin, Broke, Call, Done, LoadLosses, Message, Refused, Reply, SentPass, sendable

_GRAPHS: Final = "custom"
"""The loss that makes losses of graphs."""

Outcome = ForwardBackwardResult | WeaverError
log = logging.getLogger(__name__)


class Rank:
    """The backend of this process, and the losses it has loaded."""

    def __init__(self, begin: Begin, environment: Mapping[str, str]) -> None:
        self.first = environment["RANK"] == "0"
        self._label = f"rank {environment['RANK']} of {environment['WORLD_SIZE']} (process {os.getpid()})"
        self._disabled = begin.disabled_plugins
        self._registry = load_registry(begin.disabled_plugins)
        self._losses: dict[str, Loss] = {}
        self._backend: Backend = self._registry.backend(begin.backend).open(begin.source)

    def do(self, message: Message) -> Reply:
        match message:
            case Call(method="forward_backward", args=(passes,)):
                return self._forward_backward(passes)
            case Call(method, args, kwargs):
                value = getattr(self._backend, method)(*args, **kwargs)
                return Done(value if self.first else None)
            case LoadLosses(names):
                return Done({name: self._missing(name) for name in names})
        raise AssertionError(f"{message} is no call")

    def close(self) -> None:
        self._backend.close()

    def _forward_backward(self, passes: Sequence[SentPass]) -> Done:
        found = self._backend.forward_backward([one.arrived(self._loss(one)) for one in passes])
        outcomes = [sendable(one) if isinstance(one, WeaverError) else one for one in found]
        return Done(outcomes if self.first else None, tuple(map(_kind, outcomes)))

    def _loss(self, one: SentPass) -> Loss:
        if one.loss.graph is None:
            return self._losses[one.loss.name]
        make = self._registry.loss(_GRAPHS).from_graph
        assert make is not None
        return make(one.loss.graph)

    def _missing(self, name: str) -> WeaverError | None:
        try:
            self._losses.update(losses_for_worker([name], self._label, self._disabled))
        except UnknownName as error:
            return error
        return None


def _kind(outcome: Outcome) -> str:
    return "failed" if isinstance(outcome, WeaverError) else "done"


def answered(work: Callable[[], Reply]) -> Reply:
    """What `work` came to, whatever it raises."""
    try:
        return work()
    except WeaverError as error:
        return Refused(sendable(error))
    except Exception as error:  # noqa: BLE001 -- whatever a backend raises, the server must hear of it
        log.error("a call failed:\n%s", traceback.format_exc())
        return Broke(f"{type(error).__name__}: {error}")


def end_with_server(connection: Connection) -> None:
    """End this process as soon as the server's end of the connection is gone, whatever its other threads do.

    A server that was killed says nothing; nobody may be left behind that holds a device.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # hang-ups are told unasked
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="weaver-server-watch", daemon=True).start()


def serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """Open what the server says, then do what it calls, one thing at a time, until it says that this is the end.

    What could not be opened is not called, and stays until the server has heard of it from all.
    """
    begin: Begin = connection.recv()
    opened: list[Rank] = []

    def open_rank() -> Reply:
        opened.append(Rank(begin, environment))
        return Done()

    connection.send(answered(open_rank))
    while isinstance(message := connection.recv(), Call | LoadLosses):
        connection.send(answered(partial(opened[0].do, message)))
    for rank in opened:
        rank.close()


def main() -> None:
    prepare_threads()
    if len(sys.argv) != 2:
        raise InvalidInput("weaver.workers.rank is started by a server, with the number of a socket")
    descriptor: Any = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    end_with_server(connection)
    with suppress(EOFError):  # the server is gone
        serve(connection, os.environ)


if __name__ == "__main__":
    main()
