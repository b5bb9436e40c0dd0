"""What every protocol's routes need of the application they are mounted in."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from weaver.errors import NotAuthenticated, PluginBroken
from weaver.operators import Authenticator
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

    async def admit(self, request: Request) -> None:
        """Ask every plugin that says who may come in. Raises what one of them raises: NotAuthenticated to keep out."""
        headers = dict(request.headers)
        for authenticator in self.service.authenticators():
            request.state.user = await asyncio.to_thread(_asked, authenticator, headers)


def _asked(authenticator: Authenticator, headers: dict[str, str]) -> str:
    try:
        return authenticator.authenticate(headers)
    except NotAuthenticated:
        raise
    except Exception as error:
        raise PluginBroken(
            f"the authenticator {authenticator.name!r} failed: {type(error).__name__}: {error}; tell its operator"
        ) from error


async def _context(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context


async def _service(context: Annotated[ServerContext, Depends(_context)]) -> Service:
    return context.service


TheContext = Annotated[ServerContext, Depends(_context)]
TheService = Annotated[Service, Depends(_service)]
