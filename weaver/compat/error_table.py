"""The one table from weaver's errors to HTTP's statuses, for servers and for clients in the same process."""

from collections.abc import Sequence
from typing import Final

from weaver import errors

# The first class that fits decides, so the finer ones come first.
STATUS: Final[Sequence[tuple[type[Exception], int]]] = (
    (errors.UnknownName, 404),
    (errors.Forgotten, 410),
    (errors.NotAuthenticated, 401),
    (errors.NotAllowed, 403),
    (errors.UserError, 400),
    (errors.Stopped, 503),
    (errors.ServerError, 500),
)


def status_of(error: Exception, others: Sequence[tuple[type[Exception], int]] = ()) -> int:
    """Of an error of weaver's, or of the `others`; 500 for what nobody raises on purpose."""
    return next((status for kind, status in (*STATUS, *others) if isinstance(error, kind)), 500)
