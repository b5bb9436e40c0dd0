"""The seam between clients and what serves them: one request, one answer. Belongs to the background loop."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final, Protocol

Json = dict[str, Any]

ATTEMPTS: Final = 10
"""How often a request is asked that may be asked again."""


class Transport(Protocol):
    def began(self, future: "Future[Any]", *, is_sample: bool) -> None:
        """A client's method was called; a service in this process sees it through when the process ends."""

    async def open(self) -> None:
        """Make sure the service can be talked to."""

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
        *,
        attempts: int = ATTEMPTS,
        hold: bool = False,
    ) -> Any:
        """The answer to `/models`, `/operations/{id}`, ...; arrays may stand where JSON has lists.

        With `attempts` 1 it is asked once, but for a connection that could not be made. With `hold` the answer may come
        when the operation that it is about has ended, otherwise it comes at once. Raises WeaverAPIError.
        """

    async def pack(self, operation_id: str, size: int) -> bytes:
        """The tensors of a result that travels apart from it."""

    async def close(self) -> None: ...
