"""OpenAI's endpoints, at their own place and at Tinker's."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from weaver.compat.context import ServerContext, TheContext, TheService
from weaver.compat.openai import models, requests
from weaver.compat.openai.answers import Envelope, Mailbox, stream
from weaver.compat.openai.errors import PREFIXES, OpenAIRoute
from weaver.compat.openai.jobs import Job, chat_job, completion_job
from weaver.compat.openai.sampling import Disconnected, Running, Samplers
from weaver.compat.tinker.openapi import reads
from weaver.compat.tinker.routes.bodies import json_object
from weaver.errors import NotAuthenticated

_CLOSED_REQUEST = 499  # nobody reads it; what logs of servers have for a client that left


async def _key(
    request: Request,
    context: TheContext,
    authorization: Annotated[str, Header()] = "",
    x_api_key: Annotated[str, Header()] = "",
    x_weaver_api_key: Annotated[str, Header()] = "",
) -> None:
    """A bearer's key, or one as Tinker's or Weaver's clients send it. All are compared, each in constant time."""
    given = [one.encode() for one in (authorization.removeprefix("Bearer "), x_api_key, x_weaver_api_key)]
    matches = [hmac.compare_digest(one, key.encode()) for key in context.api_keys for one in given]
    if context.api_keys and not any(matches):
        raise NotAuthenticated("the header Authorization: Bearer holds none of this server's keys, nor does X-API-Key")
    await context.admit(request)


async def _samplers(request: Request) -> Samplers:
    samplers: Samplers = request.app.state.openai_samplers
    return samplers


TheSamplers = Annotated[Samplers, Depends(_samplers)]
endpoints = APIRouter(route_class=OpenAIRoute, dependencies=[Depends(_key)])


@endpoints.get("/models")
async def list_models(service: TheService) -> JSONResponse:
    return JSONResponse({"object": "list", "data": models.listed(service)})


@endpoints.get("/models/{model:path}")
async def retrieve_model(model: str, service: TheService) -> JSONResponse:
    return JSONResponse(models.described(service, model))


@endpoints.post("/chat/completions", openapi_extra=reads(requests.ChatCompletion))
async def create_chat_completion(request: Request, context: TheContext, samplers: TheSamplers) -> Response:
    asked = requests.parse(requests.ChatCompletion, await json_object(request))
    return await _answer(request, context, samplers, await chat_job(context.service, asked))


@endpoints.post("/completions", openapi_extra=reads(requests.Completion))
async def create_completion(request: Request, context: TheContext, samplers: TheSamplers) -> Response:
    asked = requests.parse(requests.Completion, await json_object(request))
    return await _answer(request, context, samplers, await completion_job(context.service, asked))


async def _answer(request: Request, context: ServerContext, samplers: Samplers, job: Job) -> Response:
    mailbox = Mailbox() if job.asked.stream else None
    request_ids = job.start(samplers, None if mailbox is None else mailbox.put)
    envelope = Envelope(job, request_ids[0])
    running = Running(request, context, request_ids)
    if mailbox is not None:
        return StreamingResponse(stream(envelope, running, mailbox), media_type="text/event-stream")
    try:
        return JSONResponse(envelope.whole(await running.result()))
    except Disconnected:
        return Response(status_code=_CLOSED_REQUEST)
    finally:
        running.leave()


router = APIRouter()
for prefix in PREFIXES:
    router.include_router(endpoints, prefix=prefix)
