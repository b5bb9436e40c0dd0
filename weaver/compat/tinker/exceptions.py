"""What calls of the clients raise.

TinkerError
├── APIError                        has message, request, body
│   ├── APIConnectionError          no answer
│   │   └── APITimeoutError         no answer in time
│   ├── APIResponseValidationError  an answer of an unknown shape
│   └── APIStatusError              an answer of 4xx or 5xx; has response, status_code
│       └── BadRequestError 400, AuthenticationError 401, BillingError 402, PermissionDeniedError 403,
│           NotFoundError 404, ConflictError 409, UnprocessableEntityError 422, RateLimitError 429,
│           InternalServerError 500 and above
└── RequestFailedError              an operation was accepted and failed; has message, request_id, category
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

    from weaver.compat.tinker.types.names import RequestErrorCategory


class TinkerError(Exception):
    """Base of everything the clients raise on purpose."""


class APIError(TinkerError):
    """A request had no usable answer. `body` is what was answered: read as JSON, else as text; None for no answer."""

    message: str
    request: "httpx.Request"
    body: object | None

    def __init__(self, message: str, request: "httpx.Request", *, body: object | None) -> None:
        super().__init__(message)
        self.message = message
        self.request = request
        self.body = body

    def __reduce__(self) -> tuple[Any, ...]:
        # Built from its attributes: the constructors of the subclasses take different arguments.
        return _restore, (type(self), self.args, vars(self))


class APIResponseValidationError(APIError):
    """The server answered something that is not what the call expects."""

    response: "httpx.Response"
    status_code: int

    def __init__(self, response: "httpx.Response", body: object | None, message: str | None = None) -> None:
        super().__init__(message or "the server's answer is not of the expected shape", response.request, body=body)
        self.response = response
        self.status_code = response.status_code


class APIStatusError(APIError):
    """The server answered with a status of 4xx or 5xx."""

    response: "httpx.Response"
    status_code: int

    def __init__(self, message: str, response: "httpx.Response", body: object | None) -> None:
        super().__init__(message, response.request, body=body)
        self.response = response
        self.status_code = response.status_code


class APIConnectionError(APIError):
    """The server could not be reached."""

    def __init__(self, request: "httpx.Request", message: str = "Connection error.") -> None:
        super().__init__(message, request, body=None)


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""

    def __init__(self, request: "httpx.Request") -> None:
        super().__init__(request, "Request timed out.")


class BadRequestError(APIStatusError):
    """400: what was asked cannot be done; the message says why."""

    status_code: int = 400


class AuthenticationError(APIStatusError):
    """401: the key is missing or wrong."""

    status_code: int = 401


class BillingError(APIStatusError):
    """402: the account cannot pay."""

    status_code: int = 402


class PermissionDeniedError(APIStatusError):
    """403: the key does not allow this."""

    status_code: int = 403


class NotFoundError(APIStatusError):
    """404: there is no such thing."""

    status_code: int = 404


class ConflictError(APIStatusError):
    """409: it is in that state already."""

    status_code: int = 409


class UnprocessableEntityError(APIStatusError):
    """422: a field has a value the server cannot read."""

    status_code: int = 422


class RateLimitError(APIStatusError):
    """429: too much at once."""

    status_code: int = 429


class InternalServerError(APIStatusError):
    """500 and above: the server failed."""


class RequestFailedError(TinkerError):
    """An accepted operation failed; `category` says whose fault it was."""

    def __init__(self, message: str, request_id: str, category: "RequestErrorCategory") -> None:
        super().__init__(message)
        self.message: str = message
        self.request_id: str = request_id
        self.category: RequestErrorCategory = category

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.request_id, self.category)


class RetryableException(Exception):
    """The result of an operation is gone; submitting it again is the way to get one."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ExperimentalWarning(FutureWarning):
    """A call that may change or go away in any release."""


_BY_STATUS: Final[dict[int, type[APIStatusError]]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: BillingError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(
    status: int, body: object | None, request: "httpx.Request", response: "httpx.Response"
) -> APIStatusError:
    """The error for an answer with `status`: statuses without a class of their own are a plain APIStatusError."""
    response.request = request
    error = InternalServerError if status >= 500 else _BY_STATUS.get(status, APIStatusError)
    return error(f"Error code: {status} - {body}", response=response, body=body)


def _restore(error: type[APIError], args: tuple[Any, ...], attributes: dict[str, Any]) -> APIError:
    restored = error.__new__(error, *args)
    restored.args = args
    vars(restored).update(attributes)
    return restored
