"""What huggingface_hub asks for when it loads a tokenizer. Refusals carry the hub's own error codes.

A revision is "main" or the commit that an earlier answer named. Where the server has keys, a client shows one as its
`HF_TOKEN`.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse

from weaver.compat.context import TheContext, TheService
from weaver.compat.hub.files import commit_of, digest, folder_of, tokenizer_files
from weaver.errors import NotAuthenticated
from weaver.service import Service

_MAIN: Final = "main"


@dataclass(frozen=True, slots=True)
class Repository:
    """The files of one served model that may be handed out, by their path, and the revision they are."""

    name: str
    files: dict[str, Path]
    commit: str


def _refusal(status: int, code: str, message: str) -> HTTPException:
    return HTTPException(status, message, {"X-Error-Code": code, "X-Error-Message": message})


async def _key(request: Request, context: TheContext, authorization: Annotated[str, Header()] = "") -> None:
    """The hub's clients send a token, not the header X-API-Key. Every key is compared, each in constant time."""
    given = authorization.removeprefix("Bearer ").encode()
    matches = [hmac.compare_digest(given, key.encode()) for key in context.api_keys]
    if context.api_keys and not any(matches):
        raise _refusal(401, "RepoNotFound", "set HF_TOKEN to one of this server's keys")
    try:
        await context.admit(request)
    except NotAuthenticated as error:
        raise _refusal(401, "RepoNotFound", str(error)) from error


def repository(service: Service, name: str, revision: str) -> Repository:
    """A served model's. Raises the hub's refusal for another name, a model without a folder, or another revision."""
    if name not in (served := [model.name for model in service.supported_models()]):
        raise _refusal(404, "RepoNotFound", f"{name!a} is not served here; there are: {served!a}")
    location = service.base_model(name).tokenizer_location
    folder = folder_of(location)
    if folder is None:
        raise _refusal(404, "RepoNotFound", f"{name!a} is served from {location!a}, of which the server has no files")
    files = tokenizer_files(folder)
    commit = commit_of(files)
    if revision not in (_MAIN, commit):
        raise _refusal(
            404, "RevisionNotFound", f"{name!a} has the revisions {_MAIN} and {commit} here, not {revision!a}"
        )
    return Repository(name, files, commit)


def _file(service: Service, name: str, revision: str, file: str) -> FileResponse:
    found = repository(service, name, revision)
    if file not in found.files:
        headers = {"X-Repo-Commit": found.commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        raise HTTPException(404, f"{name!a} has no {file!a} here; there are: {', '.join(found.files)}", headers)
    path = found.files[file]
    headers = {
        "ETag": f'"{digest(path)}"',
        "X-Repo-Commit": found.commit,
        "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
    }
    return FileResponse(path, headers=headers, media_type="application/octet-stream")


def _info(service: Service, name: str, revision: str) -> dict[str, Any]:
    found = repository(service, name, revision)
    return {
        "id": name,
        "modelId": name,
        "sha": found.commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "library_name": "transformers",
        "siblings": [{"rfilename": file} for file in found.files],
    }


def _tree(service: Service, name: str, revision: str, under: str) -> Sequence[dict[str, Any]]:
    found = repository(service, name, revision)
    prefix = f"{under.strip('/')}/" if under.strip("/") else ""
    inside = {file: path for file, path in found.files.items() if file.startswith(prefix)}
    if prefix and not inside:
        raise _refusal(404, "EntryNotFound", f"{name!a} has no folder {under!a} here")
    return [
        {"type": "file", "oid": digest(path)[:40], "size": path.stat().st_size, "path": file}
        for file, path in inside.items()
    ]


router = APIRouter(dependencies=[Depends(_key)])


@router.head("/{name}/resolve/{revision}/{file:path}")
@router.get("/{name}/resolve/{revision}/{file:path}")
def file_of_a_short_name(name: str, revision: str, file: str, service: TheService) -> FileResponse:
    return _file(service, name, revision, file)


@router.head("/{owner}/{name}/resolve/{revision}/{file:path}")
@router.get("/{owner}/{name}/resolve/{revision}/{file:path}")
def file_of_a_name(owner: str, name: str, revision: str, file: str, service: TheService) -> FileResponse:
    return _file(service, f"{owner}/{name}", revision, file)


@router.get("/api/models/{name:path}/tree/{revision}")
def tree(name: str, revision: str, service: TheService) -> JSONResponse:
    return JSONResponse(_tree(service, name, revision, ""))


@router.get("/api/models/{name:path}/tree/{revision}/{under:path}")
def subtree(name: str, revision: str, under: str, service: TheService) -> JSONResponse:
    return JSONResponse(_tree(service, name, revision, under))


@router.get("/api/models/{name:path}/revision/{revision}")
def revision_info(name: str, revision: str, service: TheService) -> JSONResponse:
    return JSONResponse(_info(service, name, revision))


@router.get("/api/models/{name:path}")
def info(name: str, service: TheService) -> JSONResponse:
    return JSONResponse(_info(service, name, _MAIN))
