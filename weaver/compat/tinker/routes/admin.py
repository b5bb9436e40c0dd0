"""What was used and what was done."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime

from weaver.compat.context import TheService
from weaver.compat.tinker import admin_answers
from weaver.compat.tinker.routes.downloads import link
from weaver.errors import InvalidInput
from weaver.service.downloads import Signed

open_router = APIRouter()
router = APIRouter()

_LONGEST = timedelta(days=14)

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
    _check_window(starting_on, ending_before, service.meter.now())
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


def _check_window(start: datetime, end: datetime, now: float) -> None:
    for name, time in (("starting_on", start), ("ending_before", end)):
        if time.timestamp() % 3600:
            raise InvalidInput(f"{name} is {time.isoformat()}; it must be a full hour of UTC")
    if start.timestamp() > now:
        raise InvalidInput(f"starting_on is {start.isoformat()}, which is still to come")
    if not timedelta(0) < end - start <= _LONGEST:
        raise InvalidInput(f"ending_before must be after starting_on, by {_LONGEST.days} days at most")
