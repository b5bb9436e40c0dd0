"""Tinker's endpoints. Routes have no logic: decode, one call, encode."""

from fastapi import APIRouter, Depends

from weaver.compat.tinker.routes import (
    admin,
    checkpoints,
    downloads,
    futures,
    runs,
    sampling,
    session_lists,
    sessions,
    training,
)
from weaver.compat.tinker.routes.authentication import authenticate

_PREFIX = "/api/v1"

router = APIRouter()
for group in (sessions, downloads, admin):
    router.include_router(group.open_router, prefix=_PREFIX)
for group in (sessions, training, sampling, futures, runs, checkpoints, session_lists, downloads, admin):
    router.include_router(group.router, prefix=_PREFIX, dependencies=[Depends(authenticate)])
