"""The datasets that a service keeps for its users."""

from typing import Any, Final
from urllib.parse import quote

from weaver.client.connection import Connection
from weaver.client.faces import Awaited, Blocking, Face
from weaver.client.transports.contract import Json
from weaver.types import ManagedDatasetInfo, ManagedDatasetPage
from weaver.types.datasets import MOST_NAME, MOST_VERSION, segment

MOST: Final = 100


class DatasetMethods(Face):
    """What both do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(
        self,
        *,
        limit: int = MOST,
        offset: int = 0,
        name: str | None = None,
        status: str | None = None,
        compatible_model: str | None = None,
    ) -> Any:
        """A page of them."""
        if not 1 <= limit <= MOST:
            raise ValueError(f"limit must be an integer between 1 and {MOST}")
        if offset < 0:
            raise ValueError("offset must be a non-negative integer")
        query = {"limit": limit, "offset": offset, "name": name, "status": status, "compatible_model": compatible_model}
        return self._answer(self._page(query))

    async def _page(self, query: Json) -> ManagedDatasetPage:
        answer = await self._connection.request("GET", "/managed-datasets", query)
        return ManagedDatasetPage.from_payload(answer, requested_limit=query["limit"], requested_offset=query["offset"])

    def get(self, *, name: str, version: str) -> Any:
        """One version of one of them."""
        segment(name, "name", MOST_NAME)
        segment(version, "version", MOST_VERSION)
        return self._answer(self._one(name, version))

    async def _one(self, name: str, version: str) -> ManagedDatasetInfo:
        path = f"/managed-datasets/{quote(name, safe='')}/versions/{quote(version, safe='')}"
        found = ManagedDatasetInfo.from_payload(await self._connection.request("GET", path))
        if (found.name, found.version) != (name, version):
            raise ValueError("managed dataset response does not match the requested version")
        return found


class ManagedDatasets(DatasetMethods, Blocking):
    """Methods return when they are done."""


class AsyncManagedDatasets(DatasetMethods, Awaited):
    """Methods are to be awaited."""
