"""What clients share that need no session: one connection for each address and key."""

from functools import cache

from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.transports import choice


def session_for(client: str, holder: Session | None, base_url: str | None, api_key: str | None) -> Session:
    """The given one, or the shared one. Raises ValueError for a holder and an address at once."""
    if holder is None:
        return _shared(choice.address(base_url), api_key)
    if base_url is not None or api_key is not None:
        raise ValueError(f"{client} has its base_url and api_key from its holder; give one or the other")
    return holder


@cache
def _shared(base_url: str | None, api_key: str | None) -> Session:
    return Session(choice.transport(base_url, api_key))
