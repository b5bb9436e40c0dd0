"""HTTP calls to one vLLM server, and how they fail."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import httpx

from weaver.errors import InvalidInput, ServerError
from weaver_vllm.attached_wire import event

HEALTH_SECONDS: Final = 60.0
"""A busy server may take longer to say that it is well, or to take note of something."""
CONNECT_SECONDS: Final = 10.0

# A machine that is gone says nothing: the system finds out in 40 seconds, however busy the server is.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)

_Value = TypeVar("_Value")


class Unreached(Exception):
    """The server was not there: it has seen nothing of the call."""


class Lost(Exception):
    """The server ended while it had the call."""


class NotThere(Exception):
    """The server does not know the model that was asked for."""


class Calls:
    """Of one server. What runs when it is `lost` fails at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Nothing in between: an address of the operator's own network must not go through a proxy.
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                socket_options=_KEEPALIVE,
                trust_env=False,
            ),
            trust_env=False,
        )
        self._running: set[asyncio.Future[Any]] = set()

    @property
    def is_idle(self) -> bool:
        return not self._running

    async def get(self, path: str) -> Any:
        return _json(await self._told(await self._run(lambda: self._http.get(path))))

    async def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """The answer. Raises InvalidInput or ServerError with the server's words where it refuses."""
        return _json(await self._told(await self._run(lambda: self._http.post(path, json=content))))

    async def tell(self, path: str, content: Mapping[str, Any]) -> None:
        """Whatever comes of it: a server that is gone need not be told."""
        with suppress(httpx.HTTPError):
            await self._http.post(path, json=content, timeout=HEALTH_SECONDS)

    async def stream(self, path: str, content: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        """The events of the answer, as they come."""
        request = self._http.build_request("POST", path, json=content)
        response = await self._run(lambda: self._http.send(request, stream=True))
        try:
            if response.status_code != 200:
                await self._run(response.aread)
                await self._told(response)
            lines = response.aiter_lines()
            while (line := await self._run(lambda: _next(lines))) is not None:
                if (told := event(line)) is not None:
                    yield _no_error(told)
        finally:
            await response.aclose()

    async def is_well(self) -> bool:
        """Unless it says or shows that it is not."""
        try:
            return (await self._http.get("/health", timeout=HEALTH_SECONDS)).status_code == 200
        except httpx.TimeoutException:
            return True
        except httpx.HTTPError:
            return False

    def lose(self) -> None:
        """The server is gone: whoever waits for it need not."""
        for call in self._running:
            call.cancel()

    async def close(self) -> None:
        await self._http.aclose()

    async def _reached(self, call: Callable[[], Awaitable[_Value]]) -> _Value:
        try:
            return await call()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreached(f"{self.url} does not answer ({error})") from error
        except httpx.TransportError as error:
            raise Lost(f"{self.url} ended ({type(error).__name__} {error})") from error

    async def _run(self, call: Callable[[], Awaitable[_Value]]) -> _Value:
        task = asyncio.ensure_future(self._reached(call))
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and not current.cancelling():
                raise Lost(f"{self.url} ended") from None
            raise
        finally:
            self._running.discard(task)

    async def _told(self, response: httpx.Response) -> httpx.Response:
        """The response, where it is an answer. A failure of a server that is not well is its end."""
        if response.status_code == 200:
            return response
        words = _words(response)
        if response.status_code == 404:
            raise NotThere(f"the vLLM server at {self.url} says: {words}")
        if response.status_code == 401:
            raise InvalidInput(f"the vLLM server at {self.url} wants an API key, and weaver has none: start it without")
        if response.status_code < 500:
            raise InvalidInput(f"the vLLM server at {self.url} refuses: {words}")
        if not await self.is_well():
            raise Lost(f"{self.url} failed: {words}")
        raise ServerError(f"the vLLM server at {self.url} failed: {words}")


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:  # some answers of success are words
        return response.text


def _words(response: httpx.Response) -> str:
    told = _json(response)
    try:
        return str(told["error"]["message"])
    except (KeyError, TypeError):
        return f"{response.status_code} {response.text[:500]}"


def _no_error(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stream has begun well when it fails."""
    if "error" in told:
        raise ServerError(f"vLLM failed: {told['error'].get('message', told['error'])}")
    return told
