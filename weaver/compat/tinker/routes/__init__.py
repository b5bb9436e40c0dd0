"""Tinker's endpoints. Routes have no logic: decode, one call, encode."""

from fastapi import APIRouter, Depends

from weaver.compat.tinker.routes import checkpoints, futures, sampling, sessions, training
from weaver.compat.tinker.routes.authentication import authenticate

_PREFIX = "/api/v1"

router = APIRouter()
router.include_router(sessions.open_router, prefix=_PREFIX)
for group in (sessions, training, sampling, futures, checkpoints):
    router.include_router(group.router, prefix=_PREFIX, dependencies=[Depends(authenticate)])
