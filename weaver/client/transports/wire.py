"""Over HTTP, to `/api/v1` of a server."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final

import httpx

from weaver import __version__
from weaver.client.errors import WeaverAPIError, api_error, unavailable
from weaver.client.settings import Settings
from weaver.client.transports import packs
from weaver.client.transports.contract import ATTEMPTS, Json

logger = logging.getLogger(__name__)

PREFIX: Final = "/api/v1"
CONNECTIONS: Final = 3
"""How often a connection is tried for a request that must not be asked twice."""
_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 10.0


class Wire:
    """See `contract.Transport`."""

    def __init__(self, settings: Settings) -> None:
        assert settings.base_url is not None
        self._base_url = settings.base_url.rstrip("/")
        self._headers = {"User-Agent": f"weaver-client/{__version__}"}
        # Servers tell this API from Tinker's, on the same paths, by this header; without a key it is empty.
        self._headers["X-WEAVER-API-KEY"] = settings.api_key or ""
        self._binary = settings.tensor_transport == "http-binary"
        self._compression = settings.tensor_compression
        self._client: httpx.AsyncClient | None = None

    def began(self, future: "Future[Any]", *, is_sample: bool) -> None:
        """What a server has accepted happens without this process."""

    async def open(self) -> None:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=60)
            is_here = httpx.URL(self._base_url).host in ("localhost", "127.0.0.1", "::1")  # no proxy leads there
            timeout = httpx.Timeout(60, connect=5)
            self._client = httpx.AsyncClient(
                headers=self._headers, limits=limits, timeout=timeout, trust_env=not is_here
            )

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
        *,
        attempts: int = ATTEMPTS,
        hold: bool = False,
    ) -> Any:
        request = self._request(method, path, query, body)
        if not hold:  # RFC 7240: weaver's server acknowledges at once; others do as they like
            request.headers["Prefer"] = "respond-async"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _answer(await self._sent(request))
            except WeaverAPIError as error:
                if attempt >= attempts or not error.retryable or (method != "GET" and error.status_code != 503):
                    raise
                failure: Exception = error
            except httpx.TransportError as error:
                most = attempts if attempts > 1 else CONNECTIONS
                if attempt >= most or not _may_repeat(error, attempts, body):
                    raise unavailable(f"{method} {path}: {error or type(error).__name__}") from error
                failure = error
            logger.debug("%s %s is asked again: %s", method, path, failure)
            await asyncio.sleep(min(_FIRST_DELAY * 2 ** (attempt - 1), _LONGEST_DELAY))
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, query: Mapping[str, Any] | None, body: Json | None) -> httpx.Request:
        assert self._client is not None
        packed = packs.packed(body, self._compression) if body and self._binary and _has_data(body) else None
        if body is None:
            content, headers = None, {}
        elif packed is None:
            content, headers = packs.to_json(body), {"Content-Type": "application/json"}
        else:
            content, headers = packed.content, {"Content-Type": packed.content_type}
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self._base_url}{PREFIX}{path}"
        return self._client.build_request(method, url, content=content, headers=headers, params=given or None)

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        assert self._client is not None
        response = await self._client.send(request)
        if not response.is_success:
            raise api_error(response.status_code, _json(response), response.headers, response.text)
        return response

    async def pack(self, operation_id: str, size: int) -> bytes:
        if size > packs.LARGEST:
            raise ValueError(f"the result of {operation_id} says it has {size} bytes of tensors")
        return (await self._sent(self._request("GET", f"/operations/{operation_id}/tensor-pack", None, None))).content

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _has_data(body: Json) -> bool:
    payload = body.get("payload", {})
    return "forward_input" in payload or "forward_backward_input" in payload


def _may_repeat(error: httpx.TransportError, attempts: int, body: Json | None) -> bool:
    """What never arrived may be sent again; what may have arrived only if its number makes it one."""
    if attempts > 1 or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return True
    numbered = "seq_id" in (body or {}) or "seq_id" in (body or {}).get("payload", {})
    return numbered and not isinstance(error, httpx.TimeoutException)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _answer(response: httpx.Response) -> Any:
    """None where there is none. What is no JSON may be JSON the next time."""
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise httpx.RemoteProtocolError(f"the answer is not JSON: {response.text[:200]!r}") from error
