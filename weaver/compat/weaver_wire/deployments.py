"""Deployments: names of snapshots at this server's own OpenAI endpoint."""

from concurrent.futures import Future
from typing import Final

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.acknowledging import told
from weaver.compat.weaver_wire.checkpoints import find
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import AlreadyStopped, Json, NameTaken, NotOffered
from weaver.compat.weaver_wire.ids import checkpoint_uuid, outer, weaver_path
from weaver.compat.weaver_wire.paging import page_answer, page_of
from weaver.compat.weaver_wire.times import iso_time
from weaver.errors import AlreadyExists
from weaver.service.deployments import FAILED, STOPPED, Deployment
from weaver.service.door import parse_path


def deployment_answer(context: WireContext, deployment: Deployment) -> Json:
    """The endpoint takes as its model the name, or the path of the deployment's snapshot, `northgate_model_id`."""
    model_id, _, name = parse_path(deployment.snapshot)
    return {
        "id": deployment.deployment_id,
        "checkpoint_id": checkpoint_uuid(deployment.path, deployment.saved),
        "artifact_id": None,
        "model_id": outer(deployment.model_id),
        "name": deployment.name,
        "status": deployment.status,
        "endpoint": None if context.base_url is None else f"{context.base_url}v1",
        "northgate_model_id": weaver_path(model_id, name),
        "gpu_type": None,
        "replicas": 1,
        "gpus_per_replica": 0,
        "error": "checkpoint_gone" if deployment.status == FAILED else None,
        "created_at": iso_time(deployment.created),
        "updated_at": iso_time(deployment.updated),
    }


async def create_deployment(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked = requests.parse(requests.CreateDeployment, body)
    for field, value, only in (("replicas", asked.replicas, 1), ("gpu_type", asked.gpu_type, None),
                               ("gpus_per_replica", asked.gpus_per_replica, None)):  # fmt: skip
        if value != only:
            raise NotOffered(f"{field} is {value!r}: this server's one sampler serves every deployment; leave it out")
    info = find(context.service, params["checkpoint_id"])
    if asked.overwrite:
        _stop_those_named(context, asked.name)
    try:
        made = context.service.deployments.create(info, asked.name)
    except AlreadyExists as error:
        raise NameTaken(str(error)) from error
    return await _done(context, made)


def _stop_those_named(context: WireContext, name: str) -> None:
    for one in context.service.deployments.all():
        if one.name == name and one.status != STOPPED:
            context.service.deployments.stop(one.deployment_id)


async def _done(context: WireContext, deployment: Deployment) -> Answer:
    future: Future[Deployment] = Future()
    future.set_result(deployment)
    operation_id = f"{deployment.deployment_id}-{deployment.status}"
    context.operations.add(operation_id, future, lambda done: deployment_answer(context, done))
    return await told(context, operation_id)


async def list_deployments(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    limit, offset = page_of(query)
    found = context.service.deployments.all()
    items = [deployment_answer(context, one) for one in found[offset : offset + limit]]
    return 200, page_answer(items, limit, offset, len(found))


async def get_deployment(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return 200, deployment_answer(context, context.service.deployments.deployment(params["deployment_id"]))


async def delete_deployment(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    try:
        stopped = context.service.deployments.stop(params["deployment_id"])
    except AlreadyExists as error:
        raise AlreadyStopped(str(error)) from error
    return await _done(context, stopped)


ENDPOINTS: Final = (
    ("POST", "/checkpoints/{checkpoint_id}/deployments", create_deployment),
    ("GET", "/deployments", list_deployments),
    ("GET", "/deployments/{deployment_id}", get_deployment),
    ("DELETE", "/deployments/{deployment_id}", delete_deployment),
)
