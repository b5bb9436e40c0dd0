"""Sessions, the client's configuration, and what the server can do."""

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import answers, requests
from weaver.compat.tinker.openapi import READS_ANYTHING, reads
from weaver.compat.tinker.routes.bodies import json_object, read_body

open_router = APIRouter()
router = APIRouter()

_CLIENT_CONFIG: Final[dict[str, Any]] = {
    # One plain key per request; a token service would only stand between a user and their own machine.
    "pjwt_auth_enabled": False,
    # Each sample in flight holds a connection in its long poll. The SDK's 2000 exceed the 1024 open files that most
    # systems give a process, the client's as well as ours; a machine of one's own is busy long before 512.
    "sample_max_concurrent_requests": 512,
    # Compressing costs more than it saves on a loopback or a local network.
    "proto_compress_fwdbwd": False,
    # One request instead of two passes and a download of logprobs between them.
    "custom_loss_server_side": True,
    # Clones that number themselves at random could meet.
    "sample_join_sampling_session": True,
    # The server can, but one poll for all samples is no faster here (200 at once: 1.9 s either way), and while each is
    # polled for itself the SDK survives a restart of the server, by asking anew, and tells users why they wait.
    "sample_use_retrieve_futures": False,
}

_CLIENT_DYNAMIC_CONFIG: Final[dict[str, Any]] = {
    # Nothing here changes while a server runs, so asking hourly is plenty.
    "refresh_interval_sec": 3600,
    # A sample that nobody waits for any more leaves its place in the batch to others. Each cancellation is a short
    # request, and the server does with it what it does with any: the client's own number at once is fine.
    "sample_cancel_enabled": True,
    "sample_cancel_max_batch_size": 64,
}


@open_router.get("/healthz")
async def healthz() -> JSONResponse:
    return JSONResponse({"status": "ok"})


@router.get("/get_server_capabilities")
async def get_server_capabilities(service: TheService) -> JSONResponse:
    return JSONResponse(answers.capabilities(service.supported_models()))


@router.post("/client/config", openapi_extra=READS_ANYTHING)
async def client_config(request: Request) -> JSONResponse:
    await read_body(request)
    return JSONResponse(_CLIENT_CONFIG)


@router.post("/client/dynamic_config", openapi_extra=READS_ANYTHING)
async def client_dynamic_config(request: Request) -> JSONResponse:
    await read_body(request)
    return JSONResponse(_CLIENT_DYNAMIC_CONFIG)


@router.post("/create_session", openapi_extra=reads(requests.CreateSession))
async def create_session(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.CreateSession, await json_object(request))
    session_id = service.create_session(
        user_metadata=body.user_metadata,
        tags=body.tags,
        project_id=body.project_id,
        display_name=body.display_name,
        sdk_version=body.sdk_version,
    )
    return JSONResponse({"session_id": session_id})


@router.post("/session_heartbeat", openapi_extra=reads(requests.SessionHeartbeat))
async def session_heartbeat(request: Request, service: TheService) -> JSONResponse:
    service.heartbeat(requests.parse(requests.SessionHeartbeat, await json_object(request)).session_id)
    return JSONResponse({"type": "session_heartbeat"})


@router.post("/sessions/{session_id}/finish", openapi_extra=reads(requests.FinishSession))
async def finish_session(session_id: str, request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.FinishSession, await json_object(request))
    service.finish_session(session_id, body.reason.type, body.detail)
    return JSONResponse({})


@router.post("/telemetry", openapi_extra=READS_ANYTHING)
async def telemetry(request: Request) -> JSONResponse:
    """Accepted and dropped unread: its events carry API keys in clear."""
    await read_body(request)
    return JSONResponse({"status": "accepted"})
