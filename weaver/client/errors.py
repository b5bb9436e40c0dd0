"""What users of this API see when something is refused or fails."""

from collections.abc import Mapping
from typing import Any, Final

_NANOS: Final = 1_000_000_000


class WeaverAPIError(RuntimeError):
    """A service refused a request: `code` names the reason, `retryable` says whether to ask again may help."""

    def __init__(
        self,
        status_code: int,
        code: str,
        message: str,
        retryable: bool,
        *,
        request_id: str | None = None,
        retry_after: str | None = None,
        required_nanos: int | None = None,
        available_nanos: int | None = None,
        required_usd: str | None = None,
        available_usd: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"[{status_code}] {code}: {message}")
        self.status_code = status_code
        self.code = code
        self.message = message
        self.retryable = retryable
        self.request_id = request_id
        self.retry_after = retry_after
        self.required_nanos = required_nanos
        self.available_nanos = available_nanos
        self.required_usd = required_usd
        self.available_usd = available_usd
        self.details = dict(details or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come out of worker processes too."""
        fixed = (self.status_code, self.code, self.message, self.retryable)
        return (type(self), fixed, {name: value for name, value in vars(self).items() if name != "args"})


class WeaverOperationError(RuntimeError):
    """An operation was accepted and failed. Made of its last state, which `payload` is."""

    def __init__(self, payload: dict[str, Any], *, operation_id: str | None = None) -> None:
        self.payload = payload
        details = payload.get("error_details")
        self.details = details
        known: Mapping[str, Any] = details if isinstance(details, dict) else {}
        self.code = str(payload.get("error_code") or payload.get("error") or "operation_failed")
        self.operation_id: str | None = operation_id or payload.get("id") or known.get("operation_id")
        retryable = payload.get("retryable")
        self.retryable: bool | None = retryable if isinstance(retryable, bool) else None
        self.diagnostic_message: str | None = str(known.get("diagnostic_message") or "").strip() or None
        told = str(payload.get("error_message") or "").strip()
        self.message = told or self.diagnostic_message or "The server did not say why."
        super().__init__(self._sentence(known.get("stage")))

    def _sentence(self, stage: object) -> str:
        found = f"Operation failed: {self.code}: {self.message}"
        if self.diagnostic_message and self.diagnostic_message not in self.message:
            found += f"; diagnostic: {self.diagnostic_message}"
        named = {"operation_id": self.operation_id, "stage": stage}
        where = ", ".join(f"{name}={value}" for name, value in named.items() if value)
        return f"{found} ({where})" if where else found

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.payload,), {"operation_id": self.operation_id})


def api_error(status: int, answer: object, headers: Mapping[str, str], text: str = "") -> WeaverAPIError:
    """What a refusal is to a user. Servers that do not speak this API are quoted."""
    body: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
    details = body.get("details")
    known: Mapping[str, Any] = {**body, **(details if isinstance(details, dict) else {})}
    required, available = _integer(known.get("required_nanos")), _integer(known.get("available_nanos"))
    return WeaverAPIError(
        status,
        code=str(body.get("error") or "unknown_error"),
        message=str(body.get("message") or text),
        retryable=body.get("retryable") is True,
        request_id=_text(body.get("request_id") or headers.get("X-Request-ID")),
        retry_after=_text(body.get("retry_after") or headers.get("Retry-After")),
        required_nanos=required,
        available_nanos=available,
        required_usd=_text(known.get("required_usd")) or _dollars(required),
        available_usd=_text(known.get("available_usd")) or _dollars(available),
        details=details if isinstance(details, dict) else None,
    )


def unavailable(reason: object) -> WeaverAPIError:
    """No answer came."""
    return WeaverAPIError(503, "transport_unavailable", str(reason), True)


def _text(value: object) -> str | None:
    return None if value is None else str(value).strip() or None


def _integer(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).lstrip("-").isdigit() else None


def _dollars(nanos: int | None) -> str | None:
    if nanos is None:
        return None
    whole, rest = divmod(abs(nanos), _NANOS)
    return f"{'-' if nanos < 0 else ''}{whole}.{rest:09d}".rstrip("0").rstrip(".")
