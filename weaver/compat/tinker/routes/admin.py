"""What was used and what was done."""

from datetime import UTC, date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime

from weaver.compat.context import TheService
from weaver.compat.tinker import admin_answers
from weaver.compat.tinker.routes.downloads import link
from weaver.compat.tinker.usage_window import check_window
from weaver.service.downloads import Signed

open_router = APIRouter()
router = APIRouter()

Hour = Annotated[AwareDatetime, Query()]


@router.get("/audit")
async def audit(
    service: TheService,
    event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all",
    day: date | None = None,
) -> JSONResponse:
    wanted = day or datetime.fromtimestamp(service.meter.now(), UTC).date()
    midnight = datetime(wanted.year, wanted.month, wanted.day, tzinfo=UTC).timestamp()
    return JSONResponse(admin_answers.audit(service.sessions.events(midnight, midnight + 86_400), event_type))


@router.get("/billing/usage/events")
async def billing_usage(service: TheService, starting_on: Hour, ending_before: Hour) -> JSONResponse:
    check_window(starting_on, ending_before, service.meter.now())
    return JSONResponse(admin_answers.usage(service.meter.report(starting_on.timestamp(), ending_before.timestamp())))


@router.get("/billing/usage/checkpoints/current")
async def checkpoint_storage(service: TheService, project_id: str | None = None) -> JSONResponse:
    return JSONResponse(admin_answers.storage(service.sessions.holdings_by_project(project_id)))


@router.get("/sessions/{session_id}/trace_export")
async def export_trace(session_id: str, request: Request, service: TheService) -> JSONResponse:
    signed = service.downloads.sign_trace(service.sessions.info(session_id).session_id)
    return JSONResponse({"status": "ready", "url": link(request, f"sessions/{session_id}/trace", signed)})


@open_router.get("/sessions/{session_id}/trace")
async def trace(session_id: str, service: TheService, expires: int, signature: str) -> JSONResponse:
    service.downloads.check_trace(session_id, Signed(expires, signature))
    return JSONResponse(admin_answers.trace(service.meter.spans(session_id), service.meter.now()))
