"""What every protocol's routes need of the application they are mounted in."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from weaver.service import Service


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The service behind the routes, and how it is reached.

    Without `api_keys` any key opens. `poll_seconds` bounds a long poll; `stopping` ends every one at once.
    """

    service: Service
    api_keys: tuple[str, ...] = ()
    poll_seconds: float = 30.0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


async def _context(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context


async def _service(context: Annotated[ServerContext, Depends(_context)]) -> Service:
    return context.service


TheContext = Annotated[ServerContext, Depends(_context)]
TheService = Annotated[Service, Depends(_service)]
