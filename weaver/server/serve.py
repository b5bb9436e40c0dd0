"""Run the application: a socket, a service behind it, and a clean end."""

import gc
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from weaver import __version__
from weaver.config import Config
from weaver.errors import InvalidInput
from weaver.server.app import create_app
from weaver.service import Service

STOP_SECONDS: Final = 5
"""How long answers that are being sent may take when the server stops. What waits ends at once."""

_OPEN_FILES: Final = 65_536
_ALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}
"""Seconds of silence until the other end is asked whether it is there, between two questions, and how many of them."""


class _Server(uvicorn.Server):
    """uvicorn, saying when it is ready and ending long polls and half-sent bodies before it waits for them."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop()
        await super().shutdown(sockets=sockets)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Bound before models load: a taken port shall not cost minutes.

    Its connections notice when the machine at the other end is gone, also those over which nothing is sent.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):  # elsewhere the system's own times hold
            bound.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InvalidInput(f"cannot listen on --host {host} --port {port}: {error.strerror}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(config: Config, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Load the models, announce one line when requests are answered, and serve until SIGTERM or SIGINT.

    Either ends it cleanly: running requests are answered, the service is closed, the process ends with 0.
    """
    bound = listening_socket(host, port)
    _allow_many_connections()
    with bound:
        service = Service(config)
        try:
            _run(service, config, bound, announce)
        finally:
            service.close()
            gc.freeze()  # the interpreter looks through all that torch has left several times, for seconds, for nothing


def _run(service: Service, config: Config, bound: socket.socket, announce: Callable[[str], None]) -> None:
    app = create_app(service, config.api_keys)
    names = ", ".join(model.name for model in service.supported_models())
    server = _Server(
        _settings(app),
        ready=lambda: announce(f"weaver {__version__} ready: {url_of(bound)} serving {names}"),
        stop=app.state.context.stopping.set,
    )
    # uvicorn raises the signal that stopped it once more when it is done; by then it has been obeyed.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(app: object) -> uvicorn.Config:
    """For many clients that keep many connections open: idle ones stay longer than the clients themselves keep them, so
    that none sends a request into a connection that is just being closed."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        backlog=4096,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _allow_many_connections() -> None:
    """Each waiting request holds an open file, and systems start a process with few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
