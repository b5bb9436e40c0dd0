"""Results: a client asks for one by its request id and waits."""

import asyncio
from concurrent.futures import Future
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from weaver.compat.context import ServerContext, TheContext
from weaver.compat.tinker import answers, json_answers, requests
from weaver.compat.tinker.openapi import reads
from weaver.compat.tinker.routes.bodies import json_object
from weaver.compat.tinker.routes.training import JSON, PROTOBUF
from weaver.domain import ForwardBackwardResult, Result, SampleResult
from weaver.errors import Forgotten, Stopped, UserError

router = APIRouter()

ANYTHING: Final = "*/*"


@router.post("/retrieve_future", openapi_extra=reads(requests.RetrieveFuture))
async def retrieve_future(request: Request, context: TheContext) -> Response:
    """`allow_metadata_only` permits an answer without the result; the result itself is always allowed."""
    body = requests.parse(requests.RetrieveFuture, await json_object(request))
    future = context.service.future(body.request_id)
    if not await _settled(future, context):
        return JSONResponse(answers.still_waiting(body.request_id, context.service.waits_for(body.request_id)), 408)
    if future.cancelled():
        raise Forgotten(f"the request {body.request_id} was cancelled")
    error = future.exception()
    return _failure(error) if error else _success(future.result(), _offered(request))


@router.post("/retrieve_futures", openapi_extra=reads(requests.RetrieveFutures))
async def retrieve_futures(request: Request, context: TheContext) -> Response:
    body = requests.parse(requests.RetrieveFutures, await json_object(request))
    target, service = body.target, context.service
    client = (target.sampling_session_id, target.cloned_sampler_id)
    if body.timeout == 0:  # only to tell what was retrieved
        service.drop_samples(body.retrieved_request_ids)
        return JSONResponse(answers.completions((), body.prev_cursor))
    completions, cursor, more = service.settled_samples(*client, body.prev_cursor)
    service.drop_samples(body.retrieved_request_ids)
    if not completions and await _settled(more, context, body.timeout):
        completions, cursor, _ = service.settled_samples(*client, body.prev_cursor)
    return JSONResponse(answers.completions(completions, cursor))


@router.post("/cancel_future", openapi_extra=reads(requests.CancelFuture))
async def cancel_future(request: Request, context: TheContext) -> Response:
    context.service.cancel(requests.parse(requests.CancelFuture, await json_object(request)).request_id)
    return JSONResponse({})


async def _settled(future: Future[Any], context: ServerContext, seconds: float | None = None) -> bool:
    """Wait for the future, the end of the poll or of the server. Never cancels: others may wait for the same future."""
    waiter = asyncio.wrap_future(future)
    waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, so asyncio does not complain
    stop = asyncio.create_task(context.stopping.wait())
    either: set[asyncio.Future[Any]] = {waiter, stop}
    try:
        timeout = context.poll_seconds if seconds is None else min(seconds, context.poll_seconds)
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
    if context.stopping.is_set() and not future.done():
        raise Stopped("the server is shutting down")
    return future.done()


def _failure(error: BaseException) -> Response:
    """What went wrong while running is an answer, not a status: clients ask again after a status. A server that stops
    has not failed the operation, so there the client shall ask again."""
    if isinstance(error, Stopped):
        raise error
    category = "user" if isinstance(error, UserError) else "server"
    return JSONResponse({"error": str(error) or type(error).__name__, "category": category})


def _offered(request: Request) -> set[str]:
    """The media types that this client reads: the first SDKs JSON only, SDKs from 0.25 protobuf only, others both."""
    return {one.partition(";")[0].strip() for one in request.headers.get("accept", ANYTHING).lower().split(",")}


def _success(result: Result | SampleResult, offered: set[str]) -> Response:
    """Protobuf, which is shorter, to whom reads it. Of several records those who read JSON too may know the first one's
    shape only (0.22.7), so to them a ragged result is JSON."""
    protobuf = PROTOBUF in offered or (ANYTHING in offered and JSON not in offered)
    match result:
        case ForwardBackwardResult() if protobuf and not (JSON in offered and answers.is_ragged(result)):
            return Response(answers.forward_backward_output(result), media_type=PROTOBUF)
        case SampleResult() if protobuf:
            return Response(answers.sample_response(result), media_type=PROTOBUF)
        case ForwardBackwardResult():
            return Response(json_answers.forward_backward_output(result), media_type=JSON)
        case SampleResult():
            return Response(json_answers.sample_response(result), media_type=JSON)
        case _:
            return JSONResponse(answers.result_json(result))
