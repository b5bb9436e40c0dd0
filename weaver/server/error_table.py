"""Weaver's errors as answers of HTTP, by the table of `weaver.compat.error_table`.

Every answer is `{"detail": sentence}` with a Content-Length.

Tinker's SDK retries 408, 409, 429 and 5xx for minutes, so a refusal that asking again cannot change is never one.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as NoRoute
from starlette.requests import ClientDisconnect

from weaver.compat import error_table, openai
from weaver.compat.weaver_wire import routes as weaver_wire

logger = logging.getLogger(__name__)

# What the application itself may raise; weaver's own errors come before.
_OTHERS: Final[Sequence[tuple[type[Exception], int]]] = ((ClientDisconnect, 400), (Exception, 500))


def status_of(error: Exception) -> int:
    return error_table.status_of(error, _OTHERS)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    if status == 500:
        user = getattr(request.state, "user", "anybody")
        logger.error("%s %s, asked by %s, failed", request.method, request.url.path, user, exc_info=error)
    return JSONResponse({"detail": str(error) or type(error).__name__}, status)


async def _invalid_parameter(request: Request, error: Exception) -> JSONResponse:
    """A path, query or header value of the wrong kind, found by FastAPI before a route ran."""
    found: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    sentence = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
    return JSONResponse({"detail": sentence}, 400)


async def _no_route(request: Request, error: Exception) -> Response:
    """A path or method that nothing is at, in the shape that clients of that path read."""
    assert isinstance(error, NoRoute)
    if openai.is_ours(request.url.path):
        sentence = f"{request.method} {request.url.path}: {error.detail}; docs/openai.md lists what is offered"
        return openai.refusal(error.status_code, sentence)
    if weaver_wire.asks(request.headers.get):
        return weaver_wire.refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return await http_exception_handler(request, error)


def install(app: FastAPI) -> None:
    """Make every error of `app` an answer by the table."""
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(NoRoute, _no_route)
    for kind, _ in (*error_table.STATUS, *_OTHERS):
        app.add_exception_handler(kind, _answer)
