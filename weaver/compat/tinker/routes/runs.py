"""Training runs."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import rest_answers
from weaver.compat.tinker.routes.paging import AccessScope, Limit, Offset

router = APIRouter(prefix="/training_runs", dependencies=[AccessScope])


@router.get("")
async def list_training_runs(
    service: TheService, limit: Limit = 20, offset: Offset = 0, project_id: str | None = None
) -> JSONResponse:
    return JSONResponse(rest_answers.training_runs(service.archive.runs(limit, offset, project_id)))


@router.get("/{run}")
async def get_training_run(run: str, service: TheService) -> JSONResponse:
    return JSONResponse(rest_answers.training_run(service.archive.run(run)))


@router.get("/{run}/checkpoints")
async def list_checkpoints_of_run(run: str, service: TheService) -> JSONResponse:
    return JSONResponse(rest_answers.checkpoints(service.archive.checkpoints_of_run(run)))
