"""A checkpoint as one download, for SDKs up to 0.35: a link, which whoever has it opens."""

import asyncio
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from weaver.compat.context import TheService
from weaver.compat.tinker.routes.downloads import link
from weaver.engine.executor import checkpoint_path
from weaver.service.downloads import Signed

open_router = APIRouter()
router = APIRouter()

GZIP: Final = "application/gzip"


@router.get("/training_runs/{run}/checkpoints/{kind}/{name}/archive")
async def checkpoint_archive(run: str, kind: str, name: str, request: Request, service: TheService) -> Response:
    """SDKs up to 0.22.1 offer to read gzip (beside JSON, which they all do), hand the location of a redirect, and
    `Expires`, to their user and do not follow it. Later ones read JSON, and need it: the HTTP library under some of
    them follows redirects unasked."""
    signed = service.downloads.sign_archive(service.checkpoint_info(checkpoint_path(run, kind, name)))
    url = link(request, f"archives/{run}/{kind}/{name}.tar", signed)
    if GZIP not in ",".join(request.headers.getlist("accept")):
        return JSONResponse({"url": url, "expires": datetime.fromtimestamp(signed.expires, UTC).isoformat()})
    return RedirectResponse(url, status_code=302, headers={"Expires": formatdate(signed.expires, usegmt=True)})


@open_router.get("/archives/{run}/{kind}/{name}.tar")
async def open_archive(
    run: str, kind: str, name: str, service: TheService, expires: int, signature: str
) -> StreamingResponse:
    signed = Signed(expires, signature)
    tarball = await asyncio.to_thread(service.downloads.open_archive, checkpoint_path(run, kind, name), signed)
    told = {"Content-Length": str(tarball.size), "Content-Disposition": f"attachment; filename={quote(name)}.tar"}
    return StreamingResponse(tarball.pieces(), media_type="application/x-tar", headers=told)
