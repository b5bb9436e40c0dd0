"""What a server says about itself, its users and their files."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from weaver.compat.tinker.types.base import Lenient, Strict


class HealthResponse(Lenient):
    """The server answers."""

    status: Literal["ok"]


class SupportedModel(Lenient):
    """A base model and what can be done with it."""

    model_name: str | None = None
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None


class GetServerCapabilitiesResponse(Lenient):
    """The base models a server has."""

    supported_models: list[SupportedModel]


class ClientConfigRequest(Strict):
    """Asks how this version of the SDK should behave."""

    sdk_version: str


class ClientConfigResponse(Lenient):
    """How clients split, pace and send; asked for once."""

    pjwt_auth_enabled: bool = False
    credential_default_source: str = "api_key"
    sample_dispatch_bytes_semaphore_size: int = 10 * 2**20
    inflight_response_bytes_semaphore_size: int = 50 * 2**20
    parallel_fwdbwd_chunks: bool = True
    proto_compress_fwdbwd: bool = False
    fwdbwd_max_chunk_len: int = 1024
    fwdbwd_max_chunk_bytes_count: int = 5_000_000
    fwdbwd_dispatch_bytes_semaphore_size: int = 50_000_000
    billing_exception_max_pause_duration_sec: int = 3600
    sample_no_retries: bool = False
    sample_enable_stuck_detection: bool = True
    sample_max_concurrent_requests: int = 2000
    use_pyqwest_transport: bool = True
    sample_use_retrieve_futures: bool = False
    custom_loss_server_side: bool = False
    sample_join_sampling_session: bool = False


class ClientDynamicConfigResponse(Lenient):
    """How clients behave until they ask again, `refresh_interval_sec` later."""

    refresh_interval_sec: int = 300
    sample_cancel_enabled: bool = False
    sample_cancel_max_batch_size: int = 64


class AuthTokenResponse(Lenient):
    """A token in exchange for a key."""

    jwt: str


class WhoamiResponse(Lenient):
    """Whose key it is."""

    user_urn: str
    org_urn: str
    email: str | None = None


class AuditLogEntry(Lenient):
    """Somebody did something."""

    timestamp: datetime
    event: str
    event_details: dict[str, object] = Field(default={})
    model_id: str | None = None
    tinker_path: str | None = None
    purpose: str | None = None


class AuditLogResponse(Lenient):
    """A day of the audit log."""

    entries: list[AuditLogEntry]


class GetCurrentCheckpointStorageUsageRequest(Strict):
    """Asks what checkpoints take, of one project or of all."""

    project_id: str | None = None


class CurrentCheckpointStorageUsageItem(Lenient):
    """What one user's checkpoints in one project take."""

    project_id: str | None = None
    org_user_urn: str | None = None
    user_email: str | None = None
    user_name: str | None = None
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float
    estimated_monthly_cost_usd: float | None = None


class CurrentCheckpointStorageUsageResponse(Lenient):
    """What checkpoints take, and the price of a gigabyte."""

    effective_rate_usd_per_gigabyte_month: float | None = None
    data: list[CurrentCheckpointStorageUsageItem]
