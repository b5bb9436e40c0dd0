"""Requests of a user's own, by path: for what the clients have no method for."""

from typing import Any, Final

from weaver.client.connection import Connection
from weaver.client.transports.contract import ATTEMPTS, Json

_PREFIX: Final = "/api/v1"


class _Requests:
    """`connection` is the client's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def _answer(self, work: Any) -> Any:
        raise NotImplementedError

    def _asked(
        self, method: str, path: str, params: Json | None, body: Json | None, max_retries: int | None = None
    ) -> Any:
        attempts = ATTEMPTS if max_retries is None else max_retries
        inner = path.removeprefix(_PREFIX)
        return self._answer(self.connection.request(method, inner, params, body, attempts=attempts))

    def get(self, path: str, *, params: Json | None = None) -> Any:
        """The answer's JSON."""
        return self._asked("GET", path, params, None)

    def post(
        self, path: str, *, json: Json | None = None, params: Json | None = None, max_retries: int | None = None
    ) -> Any:
        """The answer's JSON; `max_retries` 1 for what must not happen twice."""
        return self._asked("POST", path, params, json, max_retries)

    def patch(self, path: str, *, json: Json | None = None) -> Any:
        """The answer's JSON."""
        return self._asked("PATCH", path, None, json)

    def delete(self, path: str) -> Any:
        """The answer's JSON."""
        return self._asked("DELETE", path, None, None)


class Requests(_Requests):
    """Answers, once they are there."""

    def _answer(self, work: Any) -> Any:
        return self.connection.wait(work)


class AsyncRequests(_Requests):
    """Answers to await."""

    def _answer(self, work: Any) -> Any:
        return self.connection.awaited(work)
