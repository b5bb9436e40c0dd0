"""The table of endpoints. Routes are made of it (`routes`); a client in the same process calls `dispatch`.

    context = WireContext(service)
    status, body = await dispatch(context, "POST", "/sessions", {}, {"tags": ["mine"]})

Every handler is `async (context, params, query, body) -> (status, value)`: `params` from the path, `query` from the URL
(texts, or in process whatever stands for them), `body` a JSON object. In process numpy arrays may stand for lists of
numbers in bodies, and do in results, under `data`. A handler raises what the service raises; `dispatch` answers it.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weaver.compat.weaver_wire import accounts, checkpoints, deployments, exports, models, refusals, sampling, training
from weaver.compat.weaver_wire.context import Answer, Body, Handler, Params, WireContext
from weaver.compat.weaver_wire.errors import answer_error, answer_status

logger = logging.getLogger(__name__)

PREFIX: Final = "/api/v1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`pattern` is the path below `/api/v1`, with names in braces where ids stand."""

    method: str
    pattern: str
    handler: Handler

    def match(self, method: str, path: str) -> Params | None:
        """The ids in the path, where this is its endpoint."""
        if method != self.method:
            return None
        found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", self.pattern), path)
        return None if found is None else found.groupdict()


ENDPOINTS: Final[Sequence[Endpoint]] = tuple(
    Endpoint(method, pattern, handler)
    for group in (accounts, models, training, checkpoints, sampling, exports, deployments, refusals)
    for method, pattern, handler in group.ENDPOINTS
)


async def dispatch(
    context: WireContext, method: str, path: str, query: Mapping[str, Any] | None = None, body: Body | None = None
) -> Answer:
    """The answer to a request: the status and the JSON value. Refusals are answers too, as `answer_error` has them.

    `path` may begin with `/api/v1`.
    """
    inner_path = path.removeprefix(PREFIX)
    for endpoint in ENDPOINTS:
        params = endpoint.match(method, inner_path)
        if params is not None:
            asked = {name: str(value) for name, value in (query or {}).items() if value is not None}
            return await answered(endpoint.handler, context, params, asked, body or {})
    return 404, answer_status(404, f"there is no {method} {path} here")


async def answered(handler: Handler, context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """What the handler answers, or the error it raises as an answer."""
    try:
        return await handler(context, params, query, body)
    except Exception as error:
        status, told = answer_error(error)
        if status == 500:
            logger.error("%s failed", handler.__name__, exc_info=error)
        return status, told
