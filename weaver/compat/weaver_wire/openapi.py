"""What the endpoints read, told in the OpenAPI document: bodies, ids in paths, and queries."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from weaver.compat.tinker.openapi import JSON, READS_ANYTHING, reads
from weaver.compat.weaver_wire import accounts, checkpoints, deployments, exports, models, requests, sampling, training
from weaver.compat.weaver_wire.context import Handler

READS: Final[Mapping[Handler, type[BaseModel]]] = {
    accounts.create_session: requests.CreateSession,
    accounts.log_metrics: requests.LogMetrics,
    models.create_model: requests.CreateModel,
    models.terminate: requests.Terminate,
    training.forward: requests.Forward,
    training.forward_backward: requests.ForwardBackward,
    training.optimizer_step: requests.OptimizerStep,
    checkpoints.save_checkpoint: requests.SaveCheckpoint,
    checkpoints.export_sampler: requests.ExportSampler,
    checkpoints.set_ttl: requests.SetTtl,
    checkpoints.load: requests.Load,
    sampling.create_sampling_session: requests.CreateSamplingSession,
    sampling.sample: requests.Sample,
    sampling.logprobs: requests.Logprobs,
    exports.export: requests.Export,
    exports.export_current: requests.Export,
    deployments.create_deployment: requests.CreateDeployment,
}
_PAGE: Final = ("limit", "offset")
QUERIES: Final[Mapping[Handler, tuple[str, ...]]] = {
    accounts.resolve_scope: ("organization", "project"),
    accounts.supported_models: (*_PAGE, "organization_id"),
    accounts.model_catalog: (*_PAGE, "organization_id"),
    models.list_runs: _PAGE,
    deployments.list_deployments: _PAGE,
}
_REFUSAL: Final = {
    "type": "object",
    "required": ["error", "message", "retryable"],
    "properties": {"error": {"type": "string"}, "message": {"type": "string"}, "retryable": {"type": "boolean"}},
}
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"description": "Refused, and nothing has changed.", "content": {JSON: {"schema": _REFUSAL}}}
}


def extra(method: str, pattern: str, handler: Any, query: Sequence[str] = ()) -> dict[str, Any]:
    """The `openapi_extra` of an endpoint's route."""
    told: dict[str, Any] = {
        "parameters": [
            *(_parameter(name, "path", required=True) for name in re.findall(r"{(\w+)}", pattern)),
            *(_parameter(name, "query", required=False) for name in (*query, *QUERIES.get(handler, ()))),
        ]
    }
    if method in ("POST", "PATCH"):
        told |= reads(READS[handler]) if handler in READS else READS_ANYTHING
    return told


def _parameter(name: str, place: str, *, required: bool) -> dict[str, Any]:
    kind = "integer" if name in _PAGE else "string"
    return {"name": name, "in": place, "required": required, "schema": {"type": kind}}
