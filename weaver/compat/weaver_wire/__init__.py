"""The wire of Weaver's own SDK (`nex-weaver` 1.x): JSON under `/api/v1`, long work as operations.

`endpoints` is a table of plain functions over the service, without HTTP: the routes are made of it, and clients in the
same process call it.
"""

from weaver.compat.weaver_wire.context import WireContext
from weaver.compat.weaver_wire.endpoints import dispatch

__all__ = ["WireContext", "dispatch"]
