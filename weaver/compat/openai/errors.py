"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from weaver.compat.error_table import status_of
from weaver.errors import Forgotten, InvalidInput, UnknownName

logger = logging.getLogger(__name__)

PREFIXES: Final = ("/v1", "/oai/api/v1")
"""Where the endpoints are: OpenAI's place, and Tinker's."""

_OURS: Final = re.compile(r"(/oai/api)?/v1(/|$)")
_CODES: Final = {401: "invalid_api_key", 404: "not_found"}
_OTHERS: Final = ((ClientDisconnect, 400), (RequestValidationError, 400))


class FieldRefused(InvalidInput):
    """A field of the body is at fault: `param` is its name."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(UnknownName):
    """Nothing of that name can be sampled from."""

    param, code = "model", "model_not_found"


def is_ours(path: str) -> bool:
    """Whether a client of this protocol asked for that path."""
    return _OURS.match(path) is not None


def refusal(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, param, code), status)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def error_status(error: Exception) -> int:
    """By the one table. What is gone was asked too late, which is nothing a client here can say otherwise."""
    return 400 if isinstance(error, Forgotten) else status_of(error, _OTHERS)


def answer_to(error: Exception, where: str) -> tuple[int, dict[str, Any]]:
    """Status and body. What is the server's fault is noted in its log, with where it happened."""
    status, message = error_status(error), str(error) or type(error).__name__
    if status == 500:
        logger.error("%s failed", where, exc_info=error)
    return status, error_body(status, message, getattr(error, "param", None), getattr(error, "code", None))


class OpenAIRoute(APIRoute):
    """Answers every error in OpenAI's shape, also those found before the route ran."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the client shall read it in its own shape
                status, body = answer_to(error, f"{request.method} {request.url.path}")
                return JSONResponse(body, status)

        return answer
