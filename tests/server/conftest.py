"""A real server on a free port of this machine, with the echo plugins behind it."""

import threading
from contextlib import contextmanager

import pytest
import uvicorn

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.server.app import create_app
from weaver.server.serve import listening_socket, url_of
from weaver.service import Service

MODEL = "some/echo"


def echo_config(data_dir, **settings):
    source = ModelSource(MODEL, "echo:vocab=100,context=512")
    return Config(models=(source,), data_dir=data_dir, backend="echo", sampler="echo", **settings)


class _Server(uvicorn.Server):
    """Tells the test's thread when it listens."""

    def __init__(self, config):
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        self.listening.set()


@contextmanager
def serving(service, api_keys=(), **settings):
    """Yields the URL of a server in a thread of this process."""
    app = create_app(service, api_keys, **settings)
    with listening_socket("127.0.0.1", 0) as bound:
        server = _Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_keep_alive=120))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        assert server.listening.wait(30)
        try:
            yield url_of(bound)
        finally:
            app.state.context.stopping.set()
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    service = Service(echo_config(tmp_path_factory.mktemp("data")))
    try:
        with serving(service) as address:
            yield address
    finally:
        service.close()
