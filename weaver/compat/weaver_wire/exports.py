"""Exports to Hugging Face's format, and links to their files."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.acknowledging import told
from weaver.compat.weaver_wire.checkpoints import find, free_name
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import Json
from weaver.compat.weaver_wire.ids import checkpoint_uuid, inner, outer, weaver_path
from weaver.compat.weaver_wire.times import iso_time
from weaver.compat.weaver_wire.training import in_turn
from weaver.domain import SaveForSampler, StateSaved
from weaver.errors import InvalidInput
from weaver.service import Service
from weaver.service.door import parse_path
from weaver.service.exports import COMPLETED, Artifact

Made = Artifact | tuple[str, "Future[Artifact]"]


def artifact_answer(artifact: Artifact) -> Json:
    model_id, _, name = parse_path(artifact.path)
    size = sum(file.size for file in artifact.files)
    files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in artifact.files]
    lasts = None if artifact.expires is None else round(artifact.expires - artifact.created)
    return {
        "id": artifact.artifact_id,
        "checkpoint_id": checkpoint_uuid(artifact.path, artifact.saved),
        "model_id": outer(artifact.model_id),
        "kind": artifact.kind,
        "status": artifact.status,
        "uri": f"{weaver_path(model_id, name)}/artifacts/{artifact.kind}",
        "size_bytes": size if artifact.status == COMPLETED else None,
        "manifest": {"format": "huggingface", "files": files} if artifact.status == COMPLETED else None,
        "error": artifact.error,
        "ttl_seconds": lasts,
        "expires_at": None if artifact.expires is None else iso_time(artifact.expires),
        "created_at": iso_time(artifact.created),
        "updated_at": iso_time(artifact.updated),
    }


async def export(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked = requests.parse(requests.Export, body)
    info = find(context.service, params["checkpoint_id"])
    made = context.service.exports.start(
        info, merged=asked.merge_adapter, ttl_seconds=asked.ttl_seconds, force=asked.force
    )
    if isinstance(made, Artifact):
        return 200, artifact_answer(made)
    operation_id, future = made
    context.operations.add(operation_id, future, artifact_answer)
    return await told(context, operation_id)


async def export_current(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """A checkpoint of the weights as they are in the model's turn, and the artifact of it."""
    asked, model_id = requests.parse(requests.Export, body), inner(params["model_id"])
    context.service.model_info(model_id)
    name = free_name(context.service, model_id, None, "export")
    ticket = await in_turn(context, model_id, None, SaveForSampler(name, asked.ttl_seconds))
    saved = context.service.future(ticket.request_id)
    future = _then(saved, partial(_exported, context.service, asked))
    context.operations.add(ticket.request_id, future, artifact_answer)
    return await told(context, ticket.request_id)


def _exported(service: Service, asked: requests.Export, result: StateSaved) -> "Future[Artifact]":
    info = service.checkpoint_info(result.path)
    made = service.exports.start(info, merged=asked.merge_adapter, ttl_seconds=asked.ttl_seconds, force=False)
    if isinstance(made, Artifact):
        done: Future[Artifact] = Future()
        done.set_result(made)
        return done
    return made[1]


def _then(first: "Future[Any]", follow: "Callable[[Any], Future[Artifact]]") -> "Future[Artifact]":
    """What follows the first, as one future; it fails as soon as either does."""
    last: Future[Artifact] = Future()

    def end(done: "Future[Artifact]") -> None:
        error = done.exception()
        if error is None:
            last.set_result(done.result())
        else:
            last.set_exception(error)

    def go_on(done: "Future[Any]") -> None:
        try:
            follow(done.result()).add_done_callback(end)
        except Exception as error:  # noqa: BLE001 -- whatever it is, whoever waits shall hear of it
            last.set_exception(error)

    first.add_done_callback(go_on)
    return last


async def list_artifacts(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """Those of a checkpoint, which may be gone."""
    wanted = params["checkpoint_id"]
    found = [one for one in context.service.exports.all() if checkpoint_uuid(one.path, one.saved) == wanted]
    if not found:
        find(context.service, wanted)
    return 200, {"items": [artifact_answer(one) for one in found]}


async def get_artifact(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return 200, artifact_answer(context.service.exports.artifact(params["artifact_id"]))


async def download(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    """Links to every file; whoever has one needs no key for an hour. In process they are `file:` URLs."""
    exports = context.service.exports
    artifact = exports.artifact(params["artifact_id"])
    if artifact.status != COMPLETED:
        raise InvalidInput(f"the artifact {artifact.artifact_id!r} has the status {artifact.status!r}; export it again")
    files = []
    for file in artifact.files:
        signed = exports.sign(artifact, file.name)
        url = exports.file(artifact, file.name).as_uri()
        if context.base_url is not None:
            place = f"api/v1/artifact-files/{artifact.artifact_id}/{quote(file.name)}"
            query_text = urlencode({"expires": signed.expires, "signature": signed.signature})
            url = f"{context.base_url}{place}?{query_text}"
        told_file = {"name": file.name, "url": url, "size": file.size, "sha256": file.sha256}
        files.append(told_file | {"url_expires_at": iso_time(signed.expires)})
    return 200, {"artifact_id": artifact.artifact_id, "files": files}


ENDPOINTS: Final = (
    ("POST", "/checkpoints/{checkpoint_id}/export", export),
    ("POST", "/models/{model_id}/export-hf", export_current),
    ("GET", "/checkpoints/{checkpoint_id}/artifacts", list_artifacts),
    ("GET", "/artifacts/{artifact_id}", get_artifact),
    ("GET", "/artifacts/{artifact_id}/download", download),
)
