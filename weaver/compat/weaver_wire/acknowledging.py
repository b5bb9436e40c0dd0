"""How an endpoint answers for work that takes a while."""

import asyncio

from weaver.compat.weaver_wire.context import Answer, WireContext
from weaver.compat.weaver_wire.operations import Encode
from weaver.service import Ticket


async def acknowledged(context: WireContext, ticket: Ticket, encode: Encode) -> Answer:
    """The operation of an accepted request, with its result when that comes soon."""
    service, request_id = context.service, ticket.request_id
    context.operations.add(
        request_id, service.future(request_id), encode, waits_for=lambda: service.waits_for(request_id)
    )
    return await told(context, request_id)


async def told(context: WireContext, operation_id: str) -> Answer:
    """The operation as it is when it has settled, or the time to wait for it is over."""
    settled = await context.operations.settled(operation_id, context.hold_seconds, context.stopping)
    if not settled:
        return 202, context.operations.told(operation_id)
    return 200, await asyncio.to_thread(context.operations.told, operation_id)
