"""What can be named as `loss_fn`, told from the records of the plugins."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import loss_answers

router = APIRouter()


@router.get("/losses")
async def list_losses(service: TheService) -> JSONResponse:
    """Ours: Tinker has no such endpoint."""
    return JSONResponse(loss_answers.losses(service.losses()))
