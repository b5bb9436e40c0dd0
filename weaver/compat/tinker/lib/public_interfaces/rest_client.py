"""Training runs, checkpoints and sessions: what there is, and what is done with it."""

import asyncio
import uuid
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final, Literal

from typing_extensions import deprecated

from weaver import config
from weaver.compat.tinker import types
from weaver.compat.tinker.exceptions import ExperimentalWarning
from weaver.compat.tinker.lib.deprecation import old, twin_of
from weaver.compat.tinker.lib.public_interfaces.admin_client import AdminClient
from weaver.compat.tinker.lib.public_interfaces.api_future import APIFuture
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.lib.sessionless import session_for
from weaver.compat.tinker.transports.contract import Call, Json

Scope = Literal["owned", "accessible"]
AuditEvents = Literal["all", "checkpoints", "projects", "teams", "organizations"]

TRACE_SECONDS: Final = 5.0
_RUN, _CHECKPOINT = "/training_runs/{run}", "/training_runs/{run}/checkpoints/{kind}/{name}"
_SESSION = "/sessions/{session}"
_ADMIN = "is AdminClient's now, and deprecated here"


class RestClient:
    """Needs no session: what one process made, another one lists."""

    def __init__(
        self, _holder: Session | None = None, *, base_url: str | None = None, api_key: str | None = None
    ) -> None:
        self.holder = session_for("RestClient", _holder, base_url, api_key)

    def get_telemetry(self) -> None:
        """Nothing is reported to anybody."""

    def get_server_capabilities(self) -> APIFuture[types.GetServerCapabilitiesResponse]:
        """The base models there are. In this process any other that can be loaded works too."""
        call = Call("GET", "/get_server_capabilities")
        return self.holder.ask(call, types.GetServerCapabilitiesResponse.model_validate)

    def get_training_run(
        self, training_run_id: types.ModelID, access_scope: Scope = "owned"
    ) -> APIFuture[types.TrainingRun]:
        call = Call("GET", _RUN, {"run": training_run_id}, {"access_scope": access_scope})
        return self.holder.ask(call, types.TrainingRun.model_validate)

    @twin_of("RestClient.get_training_run")
    async def get_training_run_async(
        self, training_run_id: types.ModelID, access_scope: Scope = "owned"
    ) -> types.TrainingRun:
        return await self.get_training_run(training_run_id, access_scope)

    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: Scope = "owned"
    ) -> APIFuture[types.TrainingRun]:
        """The run that a checkpoint belongs to."""
        parsed = types.ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
        return self.get_training_run(parsed.training_run_id, access_scope)

    @twin_of("RestClient.get_training_run_by_tinker_path")
    async def get_training_run_by_tinker_path_async(
        self, tinker_path: str, access_scope: Scope = "owned"
    ) -> types.TrainingRun:
        return await self.get_training_run_by_tinker_path(tinker_path, access_scope)

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[types.WeightsInfoResponse]:
        """What a checkpoint was trained on, and how."""
        call = Call("POST", "/weights_info", body={"tinker_path": tinker_path})
        return self.holder.ask(call, types.WeightsInfoResponse.model_validate)

    def list_training_runs(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned", project_id: str | None = None
    ) -> APIFuture[types.TrainingRunsResponse]:
        """Newest first."""
        query: Json = {"limit": limit, "offset": offset, "access_scope": access_scope}
        if project_id is not None:
            query["project_id"] = project_id
        return self.holder.ask(Call("GET", "/training_runs", query=query), types.TrainingRunsResponse.model_validate)

    @twin_of("RestClient.list_training_runs")
    async def list_training_runs_async(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned", project_id: str | None = None
    ) -> types.TrainingRunsResponse:
        return await self.list_training_runs(limit, offset, access_scope, project_id)

    def list_checkpoints(self, training_run_id: types.ModelID) -> APIFuture[types.CheckpointsListResponse]:
        """Those of one run."""
        call = Call("GET", f"{_RUN}/checkpoints", {"run": training_run_id})
        return self.holder.ask(call, types.CheckpointsListResponse.model_validate)

    @twin_of("RestClient.list_checkpoints")
    async def list_checkpoints_async(self, training_run_id: types.ModelID) -> types.CheckpointsListResponse:
        return await self.list_checkpoints(training_run_id)

    def get_external_weights_urls(self, tinker_path: str) -> APIFuture[types.ExternalWeightsUrlsResponse]:
        """Links to the files of what `save_weights_external` kept; in this process, `file:` links."""
        parsed = types.ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
        if parsed.checkpoint_type != "external":
            raise ValueError(f"{tinker_path!r} is no export: only tinker://<run>/external_weights/<name> has links")
        call = self._checkpoint("GET", parsed, "/external_weights_urls")
        return self.holder.ask(call, types.ExternalWeightsUrlsResponse.model_validate)

    @twin_of("RestClient.get_external_weights_urls")
    async def get_external_weights_urls_async(self, tinker_path: str) -> types.ExternalWeightsUrlsResponse:
        return await self.get_external_weights_urls(tinker_path)

    def delete_checkpoint(self, training_run_id: types.ModelID, checkpoint_id: str) -> APIFuture[None]:
        """`checkpoint_id` is like `weights/<name>`."""
        kind, _, name = checkpoint_id.partition("/")
        path = {"run": training_run_id, "kind": kind, "name": name}
        return self.holder.ask(Call("DELETE", _CHECKPOINT, path), _nothing)

    @twin_of("RestClient.delete_checkpoint")
    async def delete_checkpoint_async(self, training_run_id: types.ModelID, checkpoint_id: str) -> None:
        await self.delete_checkpoint(training_run_id, checkpoint_id)

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        return self._change("DELETE", tinker_path)

    @twin_of("RestClient.delete_checkpoint_from_tinker_path")
    async def delete_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        await self.delete_checkpoint_from_tinker_path(tinker_path)

    @old(f"get_audit_log {_ADMIN}")
    def get_audit_log(
        self, event_type: AuditEvents = "all", day: date | None = None
    ) -> APIFuture[types.AuditLogResponse]:
        return AdminClient(self.holder).get_audit_log(event_type, day)

    @old(f"get_audit_log {_ADMIN}")
    async def get_audit_log_async(
        self, event_type: AuditEvents = "all", day: date | None = None
    ) -> types.AuditLogResponse:
        return await AdminClient(self.holder).get_audit_log(event_type, day)

    def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> APIFuture[str]:
        """Copy a checkpoint into a project, without one given that of TINKER_PROJECT_ID; the copy's path."""
        project_id = destination_project_id or config.client_setting("TINKER_PROJECT_ID")
        if project_id is None:
            raise ValueError("copy_weights needs destination_project_id, or TINKER_PROJECT_ID set")
        body: Json = {"source_path": path, "destination_project_id": project_id}
        if ttl_seconds is not None:
            body["ttl_seconds"] = ttl_seconds
        key = str(uuid.uuid4())
        call = Call("POST", "/copy_weights", body=body, key=key, access_token=weights_access_token)
        return self.holder.ask(call, lambda answer: types.CopyWeightsResponse.model_validate(answer).tinker_path)

    @twin_of("RestClient.copy_weights")
    async def copy_weights_async(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> str:
        return await self.copy_weights(
            path, destination_project_id, ttl_seconds=ttl_seconds, weights_access_token=weights_access_token
        )

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        return self._change("POST", tinker_path, "/publish")

    @twin_of("RestClient.publish_checkpoint_from_tinker_path")
    async def publish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        await self.publish_checkpoint_from_tinker_path(tinker_path)

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        return self._change("DELETE", tinker_path, "/publish")

    @twin_of("RestClient.unpublish_checkpoint_from_tinker_path")
    async def unpublish_checkpoint_from_tinker_path_async(self, tinker_path: str) -> None:
        await self.unpublish_checkpoint_from_tinker_path(tinker_path)

    def set_checkpoint_ttl_from_tinker_path(self, tinker_path: str, ttl_seconds: int | None) -> APIFuture[None]:
        """From now on; None: it never expires."""
        return self._change("PUT", tinker_path, "/ttl", {"ttl_seconds": ttl_seconds})

    @twin_of("RestClient.set_checkpoint_ttl_from_tinker_path")
    async def set_checkpoint_ttl_from_tinker_path_async(self, tinker_path: str, ttl_seconds: int | None) -> None:
        await self.set_checkpoint_ttl_from_tinker_path(tinker_path, ttl_seconds)

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> APIFuture[types.CheckpointsListResponse]:
        """Of all runs, newest first."""
        call = Call("GET", "/checkpoints", query={"limit": limit, "offset": offset})
        return self.holder.ask(call, types.CheckpointsListResponse.model_validate)

    @twin_of("RestClient.list_user_checkpoints")
    async def list_user_checkpoints_async(self, limit: int = 100, offset: int = 0) -> types.CheckpointsListResponse:
        return await self.list_user_checkpoints(limit, offset)

    def get_session(self, session_id: str, access_scope: Scope = "owned") -> APIFuture[types.GetSessionResponse]:
        call = Call("GET", _SESSION, {"session": session_id}, {"access_scope": access_scope})
        return self.holder.ask(call, types.GetSessionResponse.model_validate)

    @twin_of("RestClient.get_session")
    async def get_session_async(self, session_id: str, access_scope: Scope = "owned") -> types.GetSessionResponse:
        return await self.get_session(session_id, access_scope)

    def list_sessions(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned"
    ) -> APIFuture[types.ListSessionsResponse]:
        query = {"limit": limit, "offset": offset, "access_scope": access_scope}
        return self.holder.ask(Call("GET", "/sessions", query=query), types.ListSessionsResponse.model_validate)

    @twin_of("RestClient.list_sessions")
    async def list_sessions_async(
        self, limit: int = 20, offset: int = 0, access_scope: Scope = "owned"
    ) -> types.ListSessionsResponse:
        return await self.list_sessions(limit, offset, access_scope)

    def assign_session_project(self, session_id: str, project_id: str) -> APIFuture[None]:
        path = {"session": session_id}
        return self.holder.ask(Call("PUT", f"{_SESSION}/project", path, body={"project_id": project_id}), _nothing)

    @twin_of("RestClient.assign_session_project")
    async def assign_session_project_async(self, session_id: str, project_id: str) -> None:
        await self.assign_session_project(session_id, project_id)

    def export_session_trace(self, session_id: str) -> APIFuture[str]:
        """A link to what a session did and when, for https://ui.perfetto.dev."""
        return self.holder.run(self._traced(session_id))

    @twin_of("RestClient.export_session_trace")
    async def export_session_trace_async(self, session_id: str) -> str:
        return await self.export_session_trace(session_id)

    def whoami(self) -> APIFuture[types.WhoamiResponse]:
        """Raises RuntimeError: whoever may come in here has no account."""
        return self.holder.run(_nobody())

    def get_sampler(self, sampler_id: str) -> APIFuture[types.GetSamplerResponse]:
        call = Call("GET", "/samplers/{sampler}", {"sampler": sampler_id})
        return self.holder.ask(call, types.GetSamplerResponse.model_validate)

    @twin_of("RestClient.get_sampler")
    async def get_sampler_async(self, sampler_id: str) -> types.GetSamplerResponse:
        return await self.get_sampler(sampler_id)

    @old(f"get_billing_usage {_ADMIN}")
    def get_billing_usage(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> APIFuture[types.BillingUsageResponse]:
        return AdminClient(self.holder).get_billing_usage(starting_on, ending_before)

    @old(f"get_billing_usage {_ADMIN}")
    async def get_billing_usage_async(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> types.BillingUsageResponse:
        return await AdminClient(self.holder).get_billing_usage(starting_on, ending_before)

    @old(f"get_current_checkpoint_storage_usage {_ADMIN}")
    def get_current_checkpoint_storage_usage(
        self, project_id: str | None = None
    ) -> APIFuture[types.CurrentCheckpointStorageUsageResponse]:
        return AdminClient(self.holder).get_current_checkpoint_storage_usage(project_id)

    @old(f"get_current_checkpoint_storage_usage {_ADMIN}")
    async def get_current_checkpoint_storage_usage_async(
        self, project_id: str | None = None
    ) -> types.CurrentCheckpointStorageUsageResponse:
        return await AdminClient(self.holder).get_current_checkpoint_storage_usage(project_id)

    @deprecated("search_sessions is experimental: it may change in any release", category=ExperimentalWarning)
    def search_sessions(self, request: types.SessionSearchRequest) -> APIFuture[types.SessionSearchResponse]:
        """Sessions by name, project, metadata and state."""
        call = Call("POST", "/sessions/search", body=request.model_dump(mode="json", exclude_none=True))
        return self.holder.ask(call, types.SessionSearchResponse.model_validate)

    def _change(
        self, method: str, tinker_path: str, action: str = "", body: Mapping[str, Any] | None = None
    ) -> APIFuture[None]:
        parsed = types.ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
        return self.holder.ask(self._checkpoint(method, parsed, action, body), _nothing)

    @staticmethod
    def _checkpoint(
        method: str, parsed: types.ParsedCheckpointTinkerPath, action: str, body: Mapping[str, Any] | None = None
    ) -> Call:
        kind, _, name = parsed.checkpoint_id.partition("/")
        path = {"run": parsed.training_run_id, "kind": kind, "name": name}
        return Call(method, f"{_CHECKPOINT}{action}", path, body=body)

    async def _traced(self, session_id: str) -> str:
        call = Call("GET", f"{_SESSION}/trace_export", {"session": session_id})
        while (answer := await self.holder.call(call))["status"] == "pending":
            await asyncio.sleep(TRACE_SECONDS)
        if answer["status"] == "failed":
            raise RuntimeError(f"the trace of session {session_id} could not be made: {answer.get('error')}")
        return str(answer["url"])


def _nothing(_: Json) -> None:
    """These calls answer nothing."""


async def _nobody() -> types.WhoamiResponse:
    raise RuntimeError("whoami is for tokens of the vendor's accounts; this service has plain keys, or none")
