"""The window of time that a report of usage covers."""

from datetime import datetime, timedelta
from typing import Final

from weaver.errors import InvalidInput

LONGEST: Final = timedelta(days=14)


def check_window(start: datetime, end: datetime, now: float) -> None:
    """Raises InvalidInput for hours that are not full, a beginning to come, and an end before it or too far after."""
    for name, time in (("starting_on", start), ("ending_before", end)):
        if time.timestamp() % 3600:
            raise InvalidInput(f"{name} is {time.isoformat()}; it must be a full hour of UTC")
    if start.timestamp() > now:
        raise InvalidInput(f"starting_on is {start.isoformat()}, which is still to come")
    if not timedelta(0) < end - start <= LONGEST:
        raise InvalidInput(f"ending_before must be after starting_on, by {LONGEST.days} days at most")
