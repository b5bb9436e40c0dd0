"""What whoever runs a server can add to it: where checkpoints are kept, who may come in, who is told what happened.

Each is a record that a plugin yields; all of them are opened by the server, once, and may be called from any thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class OpenStore(Protocol):
    """A place for folders of files, under names like `checkpoints/<run>/weights/<name>`. A folder never changes."""

    def put(self, name: str, folder: Path) -> None:
        """Keep every file of a local folder, which has no folders in it. When it returns, `get` gives all of them back,
        on any machine; before, `get` may find nothing but never a part."""

    def get(self, name: str, folder: Path) -> None:
        """Write the files into an empty local folder. Raises FileNotFoundError where nothing, or not all, was kept."""

    def delete(self, name: str) -> None:
        """Forget a folder; one that is not there is forgotten already."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Where checkpoints are kept, by the scheme of a URL: `weaver serve --checkpoint-store s3://bucket/prefix`.

    `name` is the scheme; `open` gets the whole URL, and imports its heavy packages inside. What the server itself works
    on stays in its data directory, which is then a cache that may be lost: the database in it may not.
    """

    name: str
    open: Callable[[str], OpenStore]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Who may come in. `authenticate` gets a request's headers, their names in lower case, and returns who is asking,
    in whatever words suit; for who may not it raises `weaver.errors.NotAuthenticated` with a message for the client.

    The server asks every installed one, beside `--api-key`, and all must let a request in. It is called on a thread of
    its own before the request is read, and may wait for others; anything else it raises is answered with status 500.
    """

    name: str
    authenticate: Callable[[Mapping[str, str]], str]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """An operation of a model, or a sample, that has come to its end.

    `kind` is the operation's type, like `ForwardBackward`, or `Sample`; `source` the model or sampling session and
    `seq_id` its number there. `began` and `ended` are seconds since the epoch; `error` is what went wrong, or None.
    `quantities` counts what was done: `trained`, `sampled`, `prompt` and `cached_prompt` tokens, `checkpoint`s.
    """

    kind: str
    source: str
    seq_id: int
    began: float
    ended: float
    error: str | None
    quantities: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Observer:
    """Told of every operation that settles, in order, on a thread of its own: slow or raising, it slows and breaks
    nothing. When it falls behind by more than `backlog` operations, the newest are dropped, and the log says how many.
    """

    name: str
    observe: Callable[[Settled], None]
    description: str = ""
    backlog: int = 10_000
