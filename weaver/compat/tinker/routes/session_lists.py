"""Sessions as their owners look at them."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import requests, rest_answers, rest_requests
from weaver.compat.tinker.openapi import reads
from weaver.compat.tinker.routes.bodies import json_object
from weaver.compat.tinker.routes.paging import AccessScope, Limit, Offset

router = APIRouter(prefix="/sessions", dependencies=[AccessScope])


@router.get("")
async def list_sessions(service: TheService, limit: Limit = 20, offset: Offset = 0) -> JSONResponse:
    return JSONResponse(rest_answers.sessions(service.sessions.page(limit, offset)))


@router.post("/search", openapi_extra=reads(rest_requests.SearchSessions))
async def search_sessions(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(rest_requests.SearchSessions, await json_object(request))
    found, more = service.sessions.search(body.search(), body.after(), body.limit)
    holdings = service.sessions.holdings([info.session_id for info in found])
    return JSONResponse(rest_answers.found_sessions(found, holdings, more=more))


@router.get("/{session_id}")
async def get_session(session_id: str, service: TheService) -> JSONResponse:
    known = service.sessions
    info = known.info(session_id)
    return JSONResponse(rest_answers.session(info, known.runs(session_id), known.samplers(session_id)))


@router.put("/{session_id}/project", openapi_extra=reads(rest_requests.AssignProject))
async def assign_project(session_id: str, request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(rest_requests.AssignProject, await json_object(request))
    service.sessions.move(session_id, body.project_id)
    return JSONResponse({})
