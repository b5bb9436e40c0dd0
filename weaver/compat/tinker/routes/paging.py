"""Query parameters that many lists take."""

from typing import Annotated, Literal

from fastapi import Depends, Query

_MOST = 1000

Offset = Annotated[int, Query(ge=0, lt=2**63)]
Limit = Annotated[int, Query(ge=1, le=_MOST)]


async def _scope(access_scope: Literal["owned", "accessible"] = "owned") -> None:
    """Checked and then nothing: whoever has a key owns all there is."""


AccessScope = Depends(_scope)
