"""What is known of checkpoints, and what their owners do with them."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import answers, requests, rest_answers, rest_requests
from weaver.compat.tinker.openapi import reads
from weaver.compat.tinker.routes.bodies import json_object
from weaver.compat.tinker.routes.paging import Limit, Offset
from weaver.engine.executor import checkpoint_path
from weaver.errors import InvalidInput
from weaver.service.archive import check_slot

router = APIRouter()

_ONE = "/training_runs/{run}/checkpoints/{kind}/{name}"


async def _path(run: str, kind: str, name: str) -> str:
    return checkpoint_path(run, kind, name)


Path = Annotated[str, Depends(_path)]


@router.get("/checkpoints")
async def list_checkpoints(service: TheService, limit: Limit = 100, offset: Offset = 0) -> JSONResponse:
    return JSONResponse(rest_answers.checkpoints_page(service.archive.checkpoints(limit, offset)))


@router.delete(_ONE)
async def delete_checkpoint(path: Path, service: TheService) -> JSONResponse:
    service.archive.delete(path)
    return JSONResponse({})


@router.post(f"{_ONE}/publish")
async def publish_checkpoint(path: Path, service: TheService) -> JSONResponse:
    service.archive.set_public(path, public=True)
    return JSONResponse({})


@router.delete(f"{_ONE}/publish")
async def unpublish_checkpoint(path: Path, service: TheService) -> JSONResponse:
    service.archive.set_public(path, public=False)
    return JSONResponse({})


@router.put(f"{_ONE}/ttl", openapi_extra=reads(rest_requests.SetTtl))
async def set_checkpoint_ttl(path: Path, request: Request, service: TheService) -> JSONResponse:
    raw = await json_object(request)
    if "ttl_seconds" not in raw:
        raise InvalidInput("ttl_seconds is missing; give null for a checkpoint that never expires")
    service.archive.set_ttl(path, requests.parse(rest_requests.SetTtl, raw).ttl_seconds)
    return JSONResponse({})


@router.post("/weights_info", openapi_extra=reads(requests.WeightsInfo))
async def weights_info(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.WeightsInfo, await json_object(request))
    return JSONResponse(answers.weights_info(service.checkpoint_info(body.tinker_path)))


@router.post("/copy_weights", openapi_extra=reads(rest_requests.CopyWeights))
async def copy_weights(
    request: Request,
    service: TheService,
    x_idempotency_key: Annotated[str | None, Header()] = None,
    x_tinker_weights_access_token: Annotated[str | None, Header()] = None,
) -> JSONResponse:
    if x_tinker_weights_access_token is not None:
        raise InvalidInput("weights_access_token must be absent: every checkpoint here is open to the server's keys")
    body = requests.parse(rest_requests.CopyWeights, await json_object(request))
    slot = check_slot(body.session_id, body.model_seq_id, body.destination_project_id)
    copied = await asyncio.to_thread(
        service.archive.copy,
        body.source_path,
        project_id=body.destination_project_id,
        slot=slot,
        ttl_seconds=body.ttl_seconds,
        key=x_idempotency_key,
    )
    return JSONResponse({"tinker_path": copied})
