"""What `tinker.Timeout` and `tinker.RequestOptions` are."""

from collections.abc import Mapping
from typing import TypedDict

from httpx import Timeout

__all__ = ["RequestOptions", "Timeout"]


class RequestOptions(TypedDict, total=False):
    """How one request is made."""

    headers: Mapping[str, str]
    max_retries: int
    timeout: float | Timeout | None
    params: Mapping[str, object]
    extra_json: Mapping[str, object]
    idempotency_key: str
    follow_redirects: bool
