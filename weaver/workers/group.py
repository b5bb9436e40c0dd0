"""The processes of one backend: started together, asked together, ended together."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Final

from weaver.config import rank_environment
from weaver.errors import ServerError, WeaverError
from weaver.workers.messages import Begin, Broke, Done, End, Message, Refused, Reply

AGREE_SECONDS: Final = 15.0
"""How long the others may go on when one process has failed: they may be waiting for it for ever."""
END_SECONDS: Final = 15.0
"""How long a process may take to free everything."""

Ended = Callable[[], None]
"""Called on a thread of its own when a process has ended."""


class RanksLost(Exception):
    """A process is gone, and the group with it; nothing of what it ran counts."""


class _Process:
    """One child, the connection to it, and a sentinel that can be waited for: readable once the child has ended."""

    def __init__(self, rank: int, environment: Mapping[str, str], ended: Ended) -> None:
        self.rank = rank
        self.connection, theirs = Pipe()
        self.sentinel, self._alive = Pipe(duplex=False)
        with theirs:
            command = [sys.executable, "-P", "-m", "weaver.workers.rank", str(theirs.fileno())]
            # A session of its own: Ctrl-C is for the server, which then ends its processes. Its lines go to stderr.
            self._child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        threading.Thread(target=self._wait, args=(ended,), name=f"weaver-rank-{rank}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        return self.sentinel.poll()

    def how(self) -> str:
        """How it ended, in words."""
        self.sentinel.poll(None)
        status = self._child.returncode
        if status >= 0:
            return f"ended with status {status}"
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"

    def kill(self) -> None:
        if not self.has_ended:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def ends_within(self, seconds: float) -> bool:
        return self.sentinel.poll(max(0.0, seconds))

    def _wait(self, ended: Ended) -> None:
        self._child.wait()
        self._alive.close()
        ended()


class Group:
    """`ranks` processes that have opened one backend. Used by one thread at a time."""

    def __init__(self, begin: Begin, ranks: int, ended: Ended = lambda: None) -> None:
        """Start them and wait until all have opened it. Raises what one raised, or RanksLost; then none is left."""
        with _reserved_port() as reserved:
            port = reserved.getsockname()[1]
            self._processes = [_Process(rank, rank_environment(rank, ranks, port), ended) for rank in range(ranks)]
            try:
                agreed(self.call(begin))
            except BaseException:
                self.kill()
                raise

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(one.pid for one in self._processes)

    @property
    def has_lost(self) -> bool:
        """Whether a process has ended."""
        return any(one.has_ended for one in self._processes)

    def call(self, message: Message) -> Sequence[Reply]:
        """What each process replies. Raises RanksLost as soon as one has ended; where one has failed and others neither
        reply nor end, after `AGREE_SECONDS` what it said."""
        payload = ForkingPickler.dumps(message)
        for one in self._processes:
            try:
                one.connection.send_bytes(payload)
            except OSError as error:
                raise self._lost(one) from error
        return self._replies()

    def close(self) -> None:
        """Let all free what they have and end; whoever does not is ended."""
        for one in self._processes:
            with suppress(OSError):
                one.connection.send(End())
        deadline = time.monotonic() + END_SECONDS
        for one in self._processes:
            one.ends_within(deadline - time.monotonic())
        self.kill()

    def kill(self) -> None:
        """End all at once, and wait until they are gone."""
        for one in self._processes:
            one.kill()
        for one in self._processes:
            one.sentinel.poll(None)
            one.connection.close()

    def _replies(self) -> list[Reply]:
        waiting = {one.connection: one for one in self._processes}
        replies: dict[int, Reply] = {}
        deadline: float | None = None
        while waiting:
            sentinels = [one.sentinel for one in self._processes]
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait([*waiting, *sentinels], left)
            for one in self._processes:
                if one.sentinel in ready:
                    raise self._lost(one)
            if not ready:
                raise _disagreement(replies, [one.rank for one in waiting.values()])
            for connection in [one for one in ready if isinstance(one, Connection)]:
                process = waiting.pop(connection)
                replies[process.rank] = reply = self._received(process)
                if not isinstance(reply, Done) and deadline is None:
                    deadline = time.monotonic() + AGREE_SECONDS
        if ended := next((one for one in self._processes if one.has_ended), None):
            raise self._lost(ended)
        return [replies[one.rank] for one in self._processes]

    def _received(self, one: _Process) -> Reply:
        try:
            reply: Reply = one.connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(one) from error
        return reply

    def _lost(self, one: _Process) -> RanksLost:
        """A process that closed its connection is ending."""
        if not one.ends_within(END_SECONDS):
            one.kill()
        return RanksLost(f"rank {one.rank} of {len(self._processes)} (process {one.pid}) {one.how()}")


class Diverged(ServerError):
    """The processes do not agree: they must start again."""


def agreed(replies: Sequence[Reply]) -> Done:
    """What all processes came to. Raises the backend's refusal where all refused; Diverged where they differ, or where
    one raised what a backend does not raise on purpose."""
    refusals = [reply for reply in replies if isinstance(reply, Refused)]
    if len(refusals) == len(replies):
        raise refusals[0].error
    done = [reply for reply in replies if isinstance(reply, Done)]
    if len(done) < len(replies) or len({reply.outcome for reply in done}) > 1:
        raise _disagreement(dict(enumerate(replies)), [])
    return done[0]


def _disagreement(replies: Mapping[int, Reply], silent: Sequence[int]) -> WeaverError:
    said = [f"rank {rank} {_said(reply)}" for rank, reply in sorted(replies.items())]
    said += [f"rank {rank} did not answer" for rank in silent]
    return Diverged(f"the backend's processes failed: {'; '.join(said)}")


def _said(reply: Reply) -> str:
    match reply:
        case Refused(error):
            return f"refused: {error}"
        case Broke(reason):
            return f"raised {reason}"
        case Done(outcome=outcome):
            return f"was done ({', '.join(outcome)})" if outcome else "was done"


def _reserved_port() -> socket.socket:
    """A socket on a port of this machine where the processes can meet. It is bound and does not listen, so that nobody
    else is given the port, and the first process can listen there."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
