"""The web application: every protocol's routes in front of one service."""

from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI

from weaver import __version__
from weaver.compat.context import ServerContext
from weaver.compat.hub import router as hub_router
from weaver.compat.openai import Samplers
from weaver.compat.openai import router as openai_router
from weaver.compat.tinker.openapi import document
from weaver.compat.tinker.routes import router as tinker_router
from weaver.compat.weaver_wire import WireContext
from weaver.compat.weaver_wire.routes import router as weaver_router
from weaver.server import error_table
from weaver.service import Service


def create_app(service: Service, api_keys: Sequence[str] = (), *, poll_seconds: float = 30.0) -> FastAPI:
    """The application. Whoever made the service closes it. Keep `poll_seconds` below the 45 s a Tinker client waits."""
    app = FastAPI(title="weaver", version=__version__, docs_url=None, redoc_url=None)
    app.state.context = ServerContext(service, tuple(api_keys), poll_seconds)
    app.state.weaver_wire = WireContext(service)
    app.include_router(weaver_router)  # before Tinker's, which has a path of it too
    app.include_router(tinker_router)
    app.state.openai_samplers = Samplers(service)
    app.include_router(openai_router)
    app.include_router(hub_router)
    error_table.install(app)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app
