"""Request bodies: read whole, uncompressed and parsed, with a bound on what they may grow to."""

import asyncio
from typing import Any, Final

import zstandard
from fastapi import Request
from pydantic_core import from_json

from weaver.compat.context import ServerContext
from weaver.errors import InvalidInput, Stopped

# Far beyond any request of the SDK (it splits at 5 MB), far below what would take the server down.
BODY_LIMIT: Final = 2**30
SILENT_SECONDS: Final = 120.0
"""How long a body may stop coming before its sender is taken for gone."""


async def read_body(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The body, uncompressed. Raises InvalidInput beyond `limit` bytes, for one that stops coming or an encoding this
    server cannot read, and Stopped when the server stops before it is there."""
    context: ServerContext = request.app.state.context
    reading, stop = asyncio.create_task(_received(request, limit)), asyncio.create_task(context.stopping.wait())
    try:
        await asyncio.wait({reading, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise Stopped("the server is shutting down")
    finally:
        reading.cancel()
        stop.cancel()
    body = reading.result()
    match request.headers.get("content-encoding", "identity").lower():
        case "identity":
            return body
        case "zstd":
            return decompress(body, limit)
        case encoding:
            raise InvalidInput(f"Content-Encoding is {encoding!r}; this server reads zstd or none")


async def _received(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size, now = 0, asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(SILENT_SECONDS) as patience:
            async for part in request.stream():
                patience.reschedule(now() + SILENT_SECONDS)
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise InvalidInput(f"the body is longer than {limit} bytes")
    except TimeoutError:
        raise InvalidInput(f"the body stopped after {size} bytes, for {SILENT_SECONDS:g} s; send it again") from None
    return b"".join(parts)


def decompress(body: bytes, limit: int) -> bytes:
    """One zstd frame. The frame's own word on its size is checked first, and memory is bounded where it has none."""
    too_long = f"the zstd body is longer than {limit} bytes uncompressed"
    try:
        if zstandard.frame_content_size(body) > limit:
            raise InvalidInput(too_long)
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidInput(f"the body is no zstd frame of at most {limit} bytes uncompressed: {error}") from None


async def json_object(request: Request) -> dict[str, Any]:
    """A JSON object, not yet checked."""
    try:
        raw = from_json(await read_body(request))
    except ValueError as error:
        raise _not_an_object(str(error)) from None
    if not isinstance(raw, dict):
        raise _not_an_object(f"it is a {type(raw).__name__}")
    return raw


def _not_an_object(why: str) -> InvalidInput:
    return InvalidInput(f"the body must be a JSON object: {why}")
