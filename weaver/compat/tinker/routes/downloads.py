"""Links to files: made for those who have a key, opened by whoever has the link."""

import asyncio
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse

from weaver.compat.context import TheService
from weaver.engine.executor import EXTERNAL, checkpoint_path
from weaver.service.downloads import Signed

open_router = APIRouter()
router = APIRouter()


def link(request: Request, path: str, signed: Signed) -> str:
    """An absolute URL, on the host by which the client reached this server."""
    query = urlencode({"expires": signed.expires, "signature": signed.signature})
    return f"{request.base_url}api/v1/{quote(path, safe='/:')}?{query}"


@router.get("/training_runs/{run}/checkpoints/external_weights/{name}/external_weights_urls")
async def external_weights_urls(run: str, name: str, request: Request, service: TheService) -> JSONResponse:
    info = service.checkpoint_info(checkpoint_path(run, EXTERNAL, name))
    links = await asyncio.to_thread(service.downloads.links, info)
    urls = {file: link(request, f"external_weights/{run}/{name}/{file}", signed) for file, signed in links.items()}
    expires = min(signed.expires for signed in links.values())
    return JSONResponse({"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()})


@open_router.get("/external_weights/{run}/{name}/{file}")
async def external_weights(
    run: str, name: str, file: str, service: TheService, expires: int, signature: str
) -> FileResponse:
    signed = Signed(expires, signature)
    return FileResponse(
        await asyncio.to_thread(service.downloads.open, checkpoint_path(run, EXTERNAL, name), file, signed)
    )
