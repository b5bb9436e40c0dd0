"""Requests to a server, repeated until they are answered or there is no point: each has numbers that make it one."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx

from weaver.compat.tinker import credentials
from weaver.compat.tinker.exceptions import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    status_error,
)
from weaver.compat.tinker.transports.contract import Call, Json
from weaver.compat.tinker.version import __version__

logger = logging.getLogger(__name__)

PREFIX: Final = "/api/v1"
RETRY_SECONDS: Final = 300.0
LONGEST_DELAY: Final = 10.0
_SAFE: Final = "/:@"  # ids have colons in them, and servers expect them as they are


class Http:
    """One server. Belongs to the background loop."""

    def __init__(self, base_url: str, api_key: str | None, headers: Mapping[str, str]) -> None:
        self.base_url = base_url.rstrip("/")
        self._credential = credentials.resolve(api_key)
        fixed = {"User-Agent": f"weaver-client/{__version__}", "x-sdk-version": __version__}
        self._headers = {**fixed, **headers}
        self._client: httpx.AsyncClient | None = None
        self._is_here = httpx.URL(self.base_url).host in ("localhost", "127.0.0.1", "::1")  # no proxy leads there

    async def json(self, call: Call) -> Json:
        """The answer of a JSON endpoint; {} where there is none. Raises the exceptions that users see."""
        path = call.endpoint.format_map({name: quote(value, safe=_SAFE) for name, value in call.path.items()})
        headers = {} if call.key is None else {"X-Idempotency-Key": call.key}
        if call.access_token is not None:
            headers["X-Tinker-Weights-Access-Token"] = call.access_token
        content = None if call.body is None else to_json(call.body)
        if content is not None:
            headers["Content-Type"] = "application/json"
        request = self._request(call.method, path, content, headers, call.query)
        return from_json(await self.answered(request))

    def post(self, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Request:
        return self._request("POST", path, content, headers, {})

    def _request(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str], query: Mapping[str, Any]
    ) -> httpx.Request:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=60)
            self._client = httpx.AsyncClient(
                limits=limits, timeout=httpx.Timeout(60, connect=5), trust_env=not self._is_here
            )
        every = {**self._headers, "X-API-Key": self._credential.token(), **headers}
        return self._client.build_request(
            method, f"{self.base_url}{PREFIX}{path}", content=content, headers=every, params=dict(query)
        )

    async def answered(self, request: httpx.Request) -> httpx.Response:
        """Ask until there is an answer that asking again would not change, for RETRY_SECONDS at most."""
        deadline, delay = time.monotonic() + RETRY_SECONDS, 0.25
        while True:
            try:
                return await self.once(request)
            except APIConnectionError as error:
                failure: Exception = error
            except APIStatusError as error:
                if not _may_change(error):
                    raise
                failure = error
            if time.monotonic() + delay > deadline:
                raise failure
            logger.debug("%s %s is asked again: %s", request.method, request.url, failure)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def once(self, request: httpx.Request, timeout: float | None = None) -> httpx.Response:
        """One attempt. Raises an APIStatusError for every answer from 400 on."""
        assert self._client is not None
        if timeout is not None:
            request.extensions = {**request.extensions, "timeout": httpx.Timeout(timeout, connect=5).as_dict()}
        try:
            response = await self._client.send(request)
        except httpx.TimeoutException as error:
            raise APITimeoutError(request) from error
        except httpx.TransportError as error:
            raise APIConnectionError(request, f"Connection error: {error or type(error).__name__}") from error
        if response.status_code >= 400:
            raise status_error(response.status_code, _body(response), request, response)
        return response

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _may_change(error: APIStatusError) -> bool:
    told = error.response.headers.get("x-should-retry")
    if told in ("true", "false"):
        return bool(told == "true")
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def to_json(body: Mapping[str, Any]) -> bytes:
    """JSON has no NaN and no infinity: they are null, which the server refuses by name."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(body), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case float() if value != value or value in (float("inf"), -float("inf")):
            return None
    return value


def from_json(response: httpx.Response) -> Json:
    if not response.content:
        return {}
    try:
        answer = response.json()
    except ValueError as error:
        raise APIResponseValidationError(response, response.text, "the server's answer is not JSON") from error
    return answer if isinstance(answer, dict) else {}


def _body(response: httpx.Response) -> object:
    try:
        found: object = response.json()
        return found
    except ValueError:
        return response.text
