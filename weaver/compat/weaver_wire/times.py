"""Times as this wire writes them."""

from datetime import UTC, datetime


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
