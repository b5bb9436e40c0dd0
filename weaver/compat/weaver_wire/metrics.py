"""What applications measure, beside the training's own metrics."""

import math
from collections.abc import Sequence
from datetime import datetime

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.errors import Json
from weaver.errors import InvalidInput


def checked_points(asked: requests.LogMetrics) -> Sequence[Json]:
    """The points as they are kept. Raises InvalidInput."""
    for index, point in enumerate(asked.metrics):
        if not math.isfinite(point.value):
            raise InvalidInput(f"metrics[{index}].value is {point.value}; it must be finite")
        try:
            datetime.fromisoformat(point.occurred_at)
        except ValueError:
            raise InvalidInput(
                f"metrics[{index}].occurred_at is {point.occurred_at!r}; give an ISO 8601 time"
            ) from None
    return [point.model_dump() for point in asked.metrics]
