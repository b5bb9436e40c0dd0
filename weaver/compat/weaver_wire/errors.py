"""Every error as this wire tells it: `{"error": code, "message": sentence, "retryable": bool}`."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from weaver import errors
from weaver.compat import error_table

Json = dict[str, Any]


class NotOffered(errors.UserError):
    """This server does not have what was asked for; the message says what it has."""


class NameTaken(errors.AlreadyExists):
    """Something else of that name is there."""


class AlreadyStopped(errors.AlreadyExists):
    """It is over, and cannot end again."""


# The first class that fits decides.
_CODES: Final[Sequence[tuple[type[BaseException], int, str]]] = (
    (NotOffered, 400, "not_offered"),
    (AlreadyStopped, 409, "already_stopped"),
    (errors.AlreadyExists, 409, "name_taken"),
    (errors.SequenceRefused, 409, "sequence_refused"),
    (errors.InvalidInput, 400, "invalid_request"),
    (errors.UnknownName, 404, "not_found"),
    (errors.Forgotten, 410, "gone"),
    (errors.NotAuthenticated, 401, "unauthorized"),
    (errors.NotAllowed, 403, "forbidden"),
    (errors.Stopped, 503, "shutting_down"),
)
_BY_STATUS: Final[Mapping[int, str]] = {
    400: "invalid_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 410: "gone", 413: "too_large", 503: "unavailable",
}  # fmt: skip


def answer_error(error: BaseException) -> tuple[int, Json]:
    """The status and the body. Only a server that stops says `retryable`: it has accepted nothing then."""
    status, code = _found(error)
    return status, body(code, str(error) or type(error).__name__, retryable=isinstance(error, errors.Stopped))


def answer_status(status: int, message: str) -> Json:
    """The body of a refusal that is known by its HTTP status alone."""
    return body(_BY_STATUS.get(status, "internal" if status >= 500 else "refused"), message)


def body(code: str, message: str, *, retryable: bool = False) -> Json:
    return {"error": code, "message": message, "retryable": retryable, "request_id": uuid.uuid4().hex}


def code_of(error: BaseException) -> str:
    return _found(error)[1]


def _found(error: BaseException) -> tuple[int, str]:
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            return status, code
    if isinstance(error, Exception) and isinstance(error, errors.WeaverError):
        status = error_table.status_of(error)
        return status, _BY_STATUS.get(status, "operation_failed")
    return 500, "internal"
