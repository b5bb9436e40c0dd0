"""The one table from weaver's errors to HTTP. Every answer is `{"detail": sentence}` with a Content-Length.

Tinker's SDK retries 408, 409, 429 and 5xx for minutes, so a refusal that asking again cannot change is never one.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from weaver import errors

logger = logging.getLogger(__name__)

# The first class that fits decides, so the finer ones come first.
STATUS: Final[Sequence[tuple[type[Exception], int]]] = (
    (errors.UnknownName, 404),
    (errors.Forgotten, 410),
    (errors.NotAuthenticated, 401),
    (errors.NotAllowed, 403),
    (errors.UserError, 400),
    (errors.Stopped, 503),
    (errors.ServerError, 500),
    (ClientDisconnect, 400),
    (Exception, 500),
)


def status_of(error: Exception) -> int:
    return next(status for kind, status in STATUS if isinstance(error, kind))


async def _answer(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    if status == 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"detail": str(error) or type(error).__name__}, status)


async def _invalid_parameter(request: Request, error: Exception) -> JSONResponse:
    """A path, query or header value of the wrong kind, found by FastAPI before a route ran."""
    found: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    sentence = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
    return JSONResponse({"detail": sentence}, 400)


def install(app: FastAPI) -> None:
    """Make every error of `app` an answer by the table."""
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    for kind, _ in STATUS:
        app.add_exception_handler(kind, _answer)
