"""Lists in pages: `limit` and `offset` in, `items` and `pagination` out."""

from collections.abc import Sequence
from typing import Final

from weaver.compat.weaver_wire.context import Params
from weaver.compat.weaver_wire.errors import Json
from weaver.errors import InvalidInput

MOST: Final = 1000


def page_of(query: Params, default: int = 25) -> tuple[int, int]:
    """The limit and the offset. Raises InvalidInput."""
    return _number(query, "limit", default, 1, MOST), _number(query, "offset", 0, 0, 2**31)


def page_answer(items: Sequence[Json], limit: int, offset: int, total: int) -> Json:
    return {"items": list(items), "pagination": {"limit": limit, "offset": offset, "total_count": total}}


def _number(query: Params, name: str, default: int, low: int, high: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        raise InvalidInput(f"{name} is {text!r}; it must be a whole number from {low} to {high}")
    return int(text)
