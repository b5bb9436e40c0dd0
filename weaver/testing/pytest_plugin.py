"""Fixtures for authors of plugins. Ask for them by `pytest -p weaver.testing.pytest_plugin`, or in pyproject.toml by

    [tool.pytest.ini_options]
    addopts = "-p weaver.testing.pytest_plugin"

No entry point loads this, so that no other project's pytest becomes slower for it.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
import uvicorn

from weaver.backend import ModelSource
from weaver.config import Config, disabled_plugins, prepare_threads
from weaver.registry import Registry, load_registry
from weaver.server.app import create_app
from weaver.server.serve import listening_socket, url_of
from weaver.service import Service

prepare_threads()
from weaver.testing.reference import write_model  # noqa: E402 -- torch reads the threads' setting when it is imported

MODEL: Final = "tiny/llama"
API_KEY: Final = "tml-any"
"""The server takes every key, and Tinker's SDK sends none that begins otherwise."""


@dataclass(frozen=True, slots=True)
class WeaverServer:
    """A server with every installed plugin and a tiny random model, on a free port of this machine:
    `tinker.ServiceClient(base_url=server.url, api_key=server.api_key)`."""

    url: str
    model: str = MODEL
    api_key: str = API_KEY


@pytest.fixture(scope="session")
def weaver_registry() -> Registry:
    """What the installed plugins yield. Fails where one of them cannot be imported."""
    return load_registry(disabled_plugins(), strict=True)


@pytest.fixture(scope="session")
def weaver_server(weaver_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeaverServer]:
    """A real server, in a thread of this process."""
    folder = tmp_path_factory.mktemp("weaver")
    source = ModelSource(MODEL, str(write_model("llama", folder / "model")), "cpu")
    service = Service(Config(models=(source,), data_dir=folder / "data"), weaver_registry)
    app = create_app(service)
    with listening_socket("127.0.0.1", 0) as bound:
        bound.listen(128)  # connections wait from here on
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield WeaverServer(url_of(bound))
        finally:
            app.state.context.stopping.set()
            server.should_exit = True
            thread.join()
            service.close()
