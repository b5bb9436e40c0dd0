"""Tinker's endpoints. Routes have no logic: decode, one call, encode."""

from fastapi import APIRouter, Depends

from weaver.compat.tinker.openapi import REFUSALS
from weaver.compat.tinker.routes import (
    admin,
    archives,
    checkpoints,
    downloads,
    futures,
    losses,
    runs,
    sampling,
    session_lists,
    sessions,
    training,
)
from weaver.compat.tinker.routes.authentication import authenticate

_PREFIX = "/api/v1"

router = APIRouter()
for group in (sessions, downloads, archives, admin):
    router.include_router(group.open_router, prefix=_PREFIX, responses=REFUSALS)
_GROUPS = (
    sessions, training, losses, sampling, futures, runs, checkpoints, session_lists, downloads, archives, admin,
)  # fmt: skip
for group in _GROUPS:
    router.include_router(group.router, prefix=_PREFIX, dependencies=[Depends(authenticate)], responses=REFUSALS)
