"""The endpoints as routes: who may come in, the body, one call, the answer."""

import hmac
import ipaddress
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from pydantic_core import from_json, to_json
from starlette.routing import Match
from starlette.types import Scope

from weaver.compat.context import ServerContext
from weaver.compat.tinker.routes.bodies import read_body
from weaver.compat.weaver_wire import openapi
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.endpoints import ENDPOINTS, PREFIX, Endpoint, answered
from weaver.compat.weaver_wire.errors import answer_status
from weaver.compat.weaver_wire.ids import inner
from weaver.compat.weaver_wire.tensor_pack import body_of_pack, is_pack
from weaver.errors import InvalidInput, NotAuthenticated
from weaver.service.downloads import Signed

KEY_HEADER: Final = "x-weaver-api-key"
AGENT: Final = "weaver-sdk/"
NO_WAIT: Final = "respond-async"
"""Of the header Prefer (RFC 7240): `weaver.client` asks for a handle, and polls by itself."""
SHARED: Final = frozenset({("GET", "/sessions/{session_id}")})
"""Paths that Tinker's protocol has too: here they are this wire's for requests that show it is its SDK that asks."""


def asks(headers: Callable[[str], str | None]) -> bool:
    """Whether the SDK of this wire sends a request: it shows a key of its own, or says its name."""
    return headers(KEY_HEADER) is not None or (headers("user-agent") or "").startswith(AGENT)


def refusal(status: int, sentence: str) -> Response:
    """For what no endpoint has answered."""
    return _encoded(status, answer_status(status, sentence))


class _OfThisSdk(APIRoute):
    """Is not there for anybody else."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if asks(Request(scope).headers.get) else (Match.NONE, {})


def _encoded(status: int, value: Any) -> Response:
    if value is None:
        return Response(status_code=status)
    content = to_json(value, inf_nan_mode="constants", fallback=lambda array: array.tolist())
    return Response(content, status, media_type="application/json")


def _route(endpoint: Endpoint) -> Callable[[Request], Any]:
    async def route(request: Request) -> Response:
        async def handle(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
            await _authenticate(request)
            model_id = params.get("model_id")
            with nullcontext() if model_id is None else context.numbering.reading(inner(model_id)):
                read = {} if endpoint.method in ("GET", "DELETE") else await _body(request)
            return await endpoint.handler(context, params, query, read)

        context = _context(request)
        return _encoded(*await answered(handle, context, request.path_params, request.query_params, {}))

    return route


def _context(request: Request) -> WireContext:
    shared: WireContext = request.app.state.weaver_wire
    server: ServerContext = request.app.state.context
    hold = 0.0 if request.headers.get("prefer") == NO_WAIT else shared.hold_seconds
    base_url = str(request.base_url)
    return replace(shared, hold_seconds=hold, base_url=base_url, is_local=_is_local(request), stopping=server.stopping)


def _is_local(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _authenticate(request: Request) -> None:
    """Raise NotAuthenticated unless a key is one of the server's; a server without keys lets everybody in.

    Every key is compared, each in constant time, so that the time taken tells nothing.
    """
    context: ServerContext = request.app.state.context
    headers = request.headers
    shown = [headers.get(KEY_HEADER, ""), headers.get("authorization", "").removeprefix("Bearer "),
             headers.get("x-api-key", "")]  # fmt: skip
    matches = [hmac.compare_digest(given.encode(), key.encode()) for given in shown for key in context.api_keys]
    if context.api_keys and not any(matches):
        raise NotAuthenticated("neither X-WEAVER-API-KEY nor Authorization: Bearer holds one of this server's keys")
    await context.admit(request)


async def _body(request: Request) -> Body:
    raw = await read_body(request)
    if not raw:
        return {}
    content_type = request.headers.get("content-type", "")
    if is_pack(content_type):
        return body_of_pack(content_type, raw)
    try:
        value = from_json(raw)
    except ValueError as error:
        raise InvalidInput(f"the body must be a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"the body must be a JSON object: it is a {type(value).__name__}")
    return value


async def artifact_file(request: Request) -> Response:
    """A file by its signed link; whoever has that needs no key. Ranges are honoured."""
    found: list[FileResponse] = []

    async def handle(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
        if not query.get("expires", "").isdecimal():
            raise InvalidInput("expires must be a whole number, as in the link")
        signed = Signed(int(query["expires"][:20]), query.get("signature", ""))
        path = context.service.exports.open(params["artifact_id"], params["name"], signed)
        found.append(FileResponse(path, media_type="application/octet-stream"))
        return 200, None

    status, value = await answered(handle, _context(request), request.path_params, request.query_params, {})
    return found[0] if found else _encoded(status, value)


def _router() -> APIRouter:
    made = APIRouter(prefix=PREFIX)
    own: Sequence[Endpoint] = sorted(ENDPOINTS, key=lambda one: "{" in one.pattern)
    for endpoint in own:
        is_shared = (endpoint.method, endpoint.pattern) in SHARED
        kind = _OfThisSdk if is_shared else APIRoute
        made.routes.append(
            kind(
                PREFIX + endpoint.pattern,
                _route(endpoint),
                methods=[endpoint.method],
                name=endpoint.handler.__name__,
                include_in_schema=not is_shared,
                responses=openapi.REFUSALS,
                openapi_extra=openapi.extra(endpoint.method, endpoint.pattern, endpoint.handler),
            )
        )
    place = "/artifact-files/{artifact_id}/{name}"
    told = openapi.extra("GET", place, artifact_file, ("expires", "signature"))
    made.add_api_route(place, artifact_file, responses=openapi.REFUSALS, openapi_extra=told)
    return made


router: Final = _router()
