"""Which transport a client gets: over the wire where an address is given, else in this process."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from weaver import config
from weaver.compat.tinker.transports.contract import Json, Transport


def transport(
    base_url: str | None = None, api_key: str | None = None, headers: Mapping[str, str] | None = None
) -> Transport:
    """For new clients. Raises TinkerError where the wire needs a key and there is none."""
    return transport_at({"base_url": address(base_url)}, api_key, headers)


def transport_at(where: Json, api_key: str | None = None, headers: Mapping[str, str] | None = None) -> Transport:
    """The same service that another client's transport is `where` it is. What it needs is imported only here."""
    if where.get("base_url"):
        wire: Any = import_module("weaver.compat.tinker.transports.wire")
        made: Transport = wire.Wire(where["base_url"], api_key, headers or {})
    else:
        local: Any = import_module("weaver.compat.tinker.transports.local")
        made = local.Local(where.get("data_dir"))
    return made


def key_of(transport: Transport) -> str | None:
    """The key that a pickled client carries; in process there is none."""
    key: str | None = getattr(transport, "api_key", None)
    return key


def address(base_url: str | None) -> str | None:
    """The server's address, given or set; None: this process."""
    return base_url or config.client_setting("TINKER_BASE_URL")
