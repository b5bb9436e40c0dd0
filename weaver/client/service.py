"""The requests of a service client: models, sampling sessions, lists."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from weaver.client.connection import Connection
from weaver.client.downloads import Download, artifact_id
from weaver.client.errors import WeaverAPIError
from weaver.client.operations import Operation
from weaver.client.references import resource_id
from weaver.client.transports.contract import Json
from weaver.types import Deployment, LoraConfig, SupportedModel, WeightsArtifact

logger = logging.getLogger(__name__)

PAGE: Final = 100
_USABLE: Final = ("healthy", "available")
_GUIDANCE: Final = {
    "deployment_unavailable": "This server publishes no checkpoints; its administrator can change that",
    "name_taken": "Delete the deployment that has the name, or choose another name",
    "deployment_limit_reached": "Delete a deployment with delete_deployment() before publishing another",
}


class ServiceRequests:
    """Requests that belong to a session or to none."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def create_model(
        self,
        base_model: str,
        model_seq_id: int | None,
        training_mode: str | None,
        lora_config: LoraConfig | Mapping[str, Any],
        user_metadata: Mapping[str, Any] | None,
        performance_tier: str | None,
        max_length: Any,
    ) -> Json:
        """The service's answer, with a `tokenizer_path` where it knows one."""
        if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int)):
            raise ValueError("training_max_sequence_length must be an integer >= 2")
        if max_length is not None and max_length < 2:
            raise ValueError("training_max_sequence_length must be an integer >= 2")
        session = await self.connection.the_session()
        lora = lora_config.to_payload() if isinstance(lora_config, LoraConfig) else dict(lora_config)
        optional = {
            "training_mode": training_mode,
            "lora_config": lora if training_mode in (None, "lora") else None,
            "user_metadata": user_metadata,
            "performance_tier": performance_tier,
            "training_max_sequence_length": max_length,
        }
        body: Json = {"model_seq_id": model_seq_id or self.connection.next_number("models"), "base_model": base_model}
        body |= {name: value for name, value in optional.items() if value is not None}
        made: Json = await self.connection.request("POST", f"/sessions/{session}/models", body=body, hold=True)
        self.connection.created_models.append(str(made["id"]))
        known = {"base_model": base_model, "session_id": session, "debug_info": None, **made}
        known["tokenizer_path"] = made.get("tokenizer_path") or await self._tokenizer_path(base_model)
        return known

    async def create_sampling_session(
        self, base_model: str | None, model_path: str | None, model_id: str | None, number: int | None
    ) -> Json:
        """The service's answer, once the weights are where they are sampled from."""
        if model_id and not model_path:
            raise ValueError("model_path is required when model_id is provided")
        session = await self.connection.the_session()
        body: Json = {
            "sampling_session_seq_id": number or self.connection.next_number("sampling sessions"),
            "base_model": base_model,
            "model_path": model_path,
        }
        body |= {"model_id": model_id} if model_id else {}
        path = f"/sessions/{session}/sampling-sessions"
        answer: Json = await self.connection.request("POST", path, body=body, hold=True)
        made: Json = answer.get("sampling_session") or answer
        if answer.get("sync_operation"):
            await self._synced(str(made["id"]), Operation(self.connection, answer["sync_operation"]))
        if made.get("tokenizer_path") is None and base_model:
            made = {**made, "tokenizer_path": await self._tokenizer_path(base_model)}
        return made

    async def _synced(self, sampling_session_id: str, operation: Operation) -> None:
        """A session whose weights do not come is none."""
        try:
            await operation.settled()
        except BaseException:
            try:
                await self.connection.request("DELETE", f"/sampling-sessions/{sampling_session_id}", attempts=1)
            except WeaverAPIError as error:
                logger.warning("sampling session %s could not be deleted: %s", sampling_session_id, error)
            raise

    async def terminate(self, model_id: str, instance_types: list[str] | None) -> Json:
        body = None if instance_types is None else {"instance_types": instance_types}
        answer: Json = await self.connection.request("POST", f"/models/{model_id}/terminate", body=body)
        return answer

    async def operation(self, path: str, payload: Json) -> Operation:
        return Operation(self.connection, await self.connection.request("POST", path, body=payload, attempts=1))

    async def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return await self.connection.request("GET", path, query)

    async def _pages(self, path: str, query: Mapping[str, Any] | None = None) -> list[Json]:
        """All items of a list that comes in pages."""
        found: list[Json] = []
        while True:
            page = await self.get(path, {**(query or {}), "limit": PAGE, "offset": len(found)})
            found += page["items"]
            if not page["items"] or len(found) >= int((page.get("pagination") or {}).get("total_count") or 0):
                return found

    async def supported_models(self) -> list[str]:
        records = await self._pages("/supported-models", await self._organization())
        return [str(one["name"]) for one in records if str(one.get("status") or "available").lower() in _USABLE]

    async def supported_model(self, base_model: str) -> Json | None:
        records = await self._pages("/supported-models", await self._organization())
        return next((one for one in records if one["name"] == base_model), None)

    async def model_catalog(self) -> list[SupportedModel]:
        records = await self._pages("/model-catalog", await self._organization())
        found = [SupportedModel.from_payload(one) for one in records]
        return [one for one in found if one.name and one.status.lower() in _USABLE]

    async def _tokenizer_path(self, base_model: str) -> str | None:
        """As the list of models has it, for services that do not say with the model."""
        record = await self.supported_model(base_model) or {}
        tokenizer = ((record.get("config") or {}).get("resource") or {}).get("tokenizer") or {}
        path: str | None = tokenizer.get("path")
        return path

    async def _organization(self) -> Json:
        details = self.connection.details
        session = self.connection.session or {}
        found = details.organization_id or session.get("organization_id")
        if found is None and (details.organization or details.project or details.project_id):
            scope = await self.resolve_scope(details.organization, details.project_id or details.project)
            found = (scope.get("organization") or {}).get("id")
        return {} if found is None else {"organization_id": found}

    async def resolve_scope(self, organization: str | None, project: str | None) -> Json:
        named = {"organization": (organization or "").strip(), "project": (project or "").strip()}
        answer: Json = await self.get("/scope/resolve", {name: value for name, value in named.items() if value})
        return answer

    async def projects(self, organization_id: str | None) -> list[Json]:
        if organization_id is None:
            organization_id = (await self.resolve_scope(None, None))["organization"]["id"]
        answer: list[Json] = await self.get(f"/organizations/{organization_id}/projects")
        return answer

    async def scheduling_options(self) -> Json:
        """Without a session."""
        await self.connection.connect(with_session=False)
        answer: Json = await self.get("/scheduling/options")
        return answer

    async def download(
        self, target: str | WeightsArtifact, folder: Path, kind: str | None, verify: bool, most_at_once: int
    ) -> Path:
        if most_at_once < 1:
            raise ValueError("max_concurrency must be >= 1")
        found = await artifact_id(self.connection, target, kind)
        try:
            return await Download(self.connection, found, folder, verify=verify).run(most_at_once)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def deployments(self) -> list[Deployment]:
        try:
            return [Deployment.from_payload(one) for one in await self._pages("/deployments")]
        except WeaverAPIError as error:
            raise with_guidance(error) from error

    async def deployment(self, deployment_id: str) -> Deployment:
        path = f"/deployments/{resource_id(deployment_id, 'deployment')}"
        try:
            return Deployment.from_payload(await self.get(path))
        except WeaverAPIError as error:
            raise with_guidance(error) from error

    async def delete_deployment(self, deployment_id: str) -> Operation:
        path = f"/deployments/{resource_id(deployment_id, 'deployment')}"
        try:
            return Operation(self.connection, await self.connection.request("DELETE", path, attempts=1))
        except WeaverAPIError as error:
            raise with_guidance(error) from error


def with_guidance(error: WeaverAPIError) -> WeaverAPIError:
    """The same refusal of a deployment, saying what to do about it."""
    advice = _GUIDANCE.get(error.code)
    if advice is None:
        return error
    known = {name: value for name, value in vars(error).items() if name != "args"}
    return WeaverAPIError(**{**known, "message": f"{error.message}. {advice}"})
