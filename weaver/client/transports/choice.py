"""Which transport a client gets: over the wire where an address is given, else in this process."""

from importlib import import_module
from typing import Any

from weaver.client.settings import Settings
from weaver.client.transports.contract import Transport


def transport(settings: Settings) -> Transport:
    """What it needs is imported only here."""
    if settings.base_url is None:
        local: Any = import_module("weaver.client.transports.local")
        made: Transport = local.Local()
    else:
        wire: Any = import_module("weaver.client.transports.wire")
        made = wire.Wire(settings)
    return made
