"""What a service tells of itself: models, runs, organizations, quotas, deployments."""

from collections.abc import Mapping
from typing import Any

from weaver.client.faces import Face
from weaver.client.operations import Operation
from weaver.client.service import ServiceRequests
from weaver.client.settings import scope
from weaver.client.transports.contract import Json
from weaver.types import Deployment


class ServiceLists(Face):
    """The part of both service clients that asks and changes little."""

    _service: ServiceRequests

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._answer(self._service.get(path, query))

    def list_supported_models(self, *, detailed: bool = False) -> Any:
        """The names of models that can be used; `detailed`: what the catalog says of each."""
        return self.list_supported_model_details() if detailed else self._answer(self._service.supported_models())

    def list_supported_model_details(self) -> Any:
        """What the catalog says of models that can be used: modes and prices."""
        return self._answer(self._service.model_catalog())

    def get_supported_model_config(self, base_model: str) -> Any:
        """What the service tells of one model; None of one it does not offer."""
        return self._answer(self._service.supported_model(base_model))

    def list_training_runs(self, *, limit: int = 25, offset: int = 0) -> Any:
        """{"items": [...], "pagination": {...}}."""
        return self._get("/training-runs", {"limit": limit, "offset": offset})

    def get_training_run(self, run_id: str) -> Any:
        """A run is a model and its checkpoints."""
        return self._get(f"/training-runs/{run_id}")

    def list_models(self, *, limit: int = 25, offset: int = 0) -> Any:
        """{"items": [...], "pagination": {...}}."""
        return self._get("/models", {"limit": limit, "offset": offset})

    def get_model(self, model_id: str) -> Any:
        """What the service tells of a model that is trained."""
        return self._get(f"/models/{model_id}")

    def list_organizations(self) -> Any:
        """Those that whoever has the key belongs to."""
        return self._get("/organizations")

    def list_projects(self, organization_id: str | None = None) -> Any:
        """Of an organization, or of the one that is used where none is named."""
        chosen = scope(organization_id, "WEAVER_ORGANIZATION_ID") or self._connection.details.organization_id
        return self._answer(self._service.projects(chosen))

    def resolve_scope(self, organization: str | None = None, project: str | None = None) -> Any:
        """The organization and the project that these ids, short names or names mean."""
        return self._answer(self._service.resolve_scope(organization, project))

    def get_scheduling_options(self) -> Any:
        """Where work may run. Needs no session."""
        return self._answer(self._service.scheduling_options())

    def _owner(self, organization_id: str | None) -> Json:
        chosen = scope(organization_id, "WEAVER_ORGANIZATION_ID") or self._connection.details.organization_id
        return {} if chosen is None else {"org_id": chosen}

    def get_quota_balance(self, organization_id: str | None = None) -> Any:
        """What is left to spend."""
        return self._get("/quota/balance", self._owner(organization_id))

    def list_quota_requests(self, organization_id: str | None = None, *, limit: int = 50, offset: int = 0) -> Any:
        """Requests for more."""
        return self._get("/quota/requests", {"limit": limit, "offset": offset, **self._owner(organization_id)})

    def request_quota(self, amount_usd: str, *, reason: str, organization_id: str | None = None) -> Any:
        """Ask for more."""
        body = {"amount_usd": str(amount_usd), "reason": reason}
        owner = self._owner(organization_id)
        return self._answer(self._connection.request("POST", "/quota/requests", owner, body, attempts=1))

    def list_deployments(self) -> Any:
        """All deployments of whoever has the key."""
        return self._answer(self._service.deployments())

    def get_deployment(self, deployment_id: str) -> Any:
        """One deployment."""
        return self._answer(self._service.deployment(deployment_id))

    def delete_deployment(self, deployment_id: str, *, wait: bool = True) -> Any:
        """Take a deployment down."""
        return self._operation(self._deleted(deployment_id), wait, Deployment.from_payload)

    async def _deleted(self, deployment_id: str) -> Operation:
        return await self._service.delete_deployment(deployment_id)
