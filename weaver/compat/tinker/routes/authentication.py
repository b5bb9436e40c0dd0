"""Who may call: the key in the header X-API-Key is one of the server's, and the plugins that are asked agree."""

import hmac
from typing import Annotated

from fastapi import Header, Request

from weaver.compat.context import TheContext
from weaver.errors import NotAuthenticated


async def authenticate(request: Request, context: TheContext, x_api_key: Annotated[str, Header()] = "") -> None:
    """Raise NotAuthenticated unless the key is one of the server's; a server without keys lets everybody in.

    Every key is compared, each in constant time, so that the time taken tells nothing.
    """
    given = x_api_key.encode()
    matches = [hmac.compare_digest(given, key.encode()) for key in context.api_keys]
    if context.api_keys and not any(matches):
        raise NotAuthenticated("the X-API-Key header holds none of this server's keys")
    await context.admit(request)
