"""What was used and what was done."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Literal

from weaver.compat.tinker import types
from weaver.compat.tinker.lib.deprecation import twin_of
from weaver.compat.tinker.lib.public_interfaces.api_future import APIFuture
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.lib.sessionless import session_for
from weaver.compat.tinker.transports.contract import Call


class AdminClient:
    """Needs no session."""

    def __init__(
        self, _holder: Session | None = None, *, base_url: str | None = None, api_key: str | None = None
    ) -> None:
        self.holder = session_for("AdminClient", _holder, base_url, api_key)

    def get_telemetry(self) -> None:
        """Nothing is reported to anybody."""

    def get_audit_log(
        self,
        event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all",
        day: date | None = None,
    ) -> APIFuture[types.AuditLogResponse]:
        """What was done on a day of UTC; without `day`, today."""
        query = {"event_type": event_type, "day": None if day is None else day.isoformat()}
        return self.holder.ask(_get("/audit", query), types.AuditLogResponse.model_validate)

    @twin_of("AdminClient.get_audit_log")
    async def get_audit_log_async(
        self,
        event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all",
        day: date | None = None,
    ) -> types.AuditLogResponse:
        return await self.get_audit_log(event_type, day)

    def get_billing_usage(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> APIFuture[types.BillingUsageResponse]:
        """What was computed between two full hours of UTC, at most 14 days apart."""
        window = types.GetBillingUsageRequest.model_validate(
            {"starting_on": starting_on, "ending_before": ending_before}
        )
        query = window.model_dump(mode="json", exclude_none=True)
        return self.holder.ask(_get("/billing/usage/events", query), types.BillingUsageResponse.model_validate)

    @twin_of("AdminClient.get_billing_usage")
    async def get_billing_usage_async(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> types.BillingUsageResponse:
        return await self.get_billing_usage(starting_on, ending_before)

    def get_current_checkpoint_storage_usage(
        self, project_id: str | None = None
    ) -> APIFuture[types.CurrentCheckpointStorageUsageResponse]:
        """What checkpoints take up now, by project."""
        call = _get("/billing/usage/checkpoints/current", {"project_id": project_id})
        return self.holder.ask(call, types.CurrentCheckpointStorageUsageResponse.model_validate)

    @twin_of("AdminClient.get_current_checkpoint_storage_usage")
    async def get_current_checkpoint_storage_usage_async(
        self, project_id: str | None = None
    ) -> types.CurrentCheckpointStorageUsageResponse:
        return await self.get_current_checkpoint_storage_usage(project_id)


def _get(endpoint: str, query: Mapping[str, Any]) -> Call:
    return Call("GET", endpoint, query={name: value for name, value in query.items() if value is not None})
