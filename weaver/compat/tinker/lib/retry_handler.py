"""How sampling is asked for again when a connection fails."""

import asyncio
from dataclasses import dataclass

import httpx

from weaver.compat.tinker.exceptions import APIConnectionError, RetryableException


@dataclass(unsafe_hash=True)
class RetryConfig:
    """Retries of samples over the wire; in process there is nothing to retry.

    A request whose connection fails is repeated after `retry_delay_base` seconds, then twice that, up to
    `retry_delay_max`, each varied by `jitter_factor`; with `enable_stuck_detection` it fails when `progress_timeout`
    seconds have brought no result for any sample of the client. `max_connections` bounds the samples of one client that
    are under way; the server's own bound counts where it is lower.
    """

    max_connections: int | None = 1000
    progress_timeout: float = 120 * 60
    retry_delay_base: float = 0.5
    retry_delay_max: float = 10.0
    jitter_factor: float = 0.25
    enable_retry_logic: bool = True
    enable_stuck_detection: bool = True
    retryable_exceptions: tuple[type[Exception], ...] = (
        asyncio.TimeoutError,
        APIConnectionError,
        httpx.TimeoutException,
        RetryableException,
    )

    def __post_init__(self) -> None:
        if self.max_connections is not None and self.max_connections <= 0:
            raise ValueError(f"max_connections must be positive, not {self.max_connections}; None is no bound")
