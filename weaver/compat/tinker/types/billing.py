"""What was used, by the hour."""

from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import Field

from weaver.compat.tinker.types.base import Lenient, Strict


class GetBillingUsageRequest(Strict):
    """Asks for a span of time."""

    starting_on: datetime
    ending_before: datetime


class TrainingBillingEvent(Lenient):
    """Tokens trained on."""

    type: Literal["training"] = "training"
    token_count: int


class SamplingPrefillBillingEvent(Lenient):
    """Tokens of prompts, computed or found in a cache."""

    type: Literal["sampling_prefill"] = "sampling_prefill"
    cached: bool
    token_count: int


class SamplingSampleBillingEvent(Lenient):
    """Tokens sampled."""

    type: Literal["sampling_sample"] = "sampling_sample"
    token_count: int


class CheckpointBillingEvent(Lenient):
    """Checkpoints saved."""

    type: Literal["checkpoint"] = "checkpoint"
    count: int


class StorageBillingEvent(Lenient):
    """Checkpoints kept."""

    type: Literal["storage"] = "storage"
    free: bool = False
    gigabyte_hours: float


BillingEventInfo: TypeAlias = (
    TrainingBillingEvent
    | SamplingPrefillBillingEvent
    | SamplingSampleBillingEvent
    | CheckpointBillingEvent
    | StorageBillingEvent
)


class BillingUsageEvent(Lenient):
    """What one user used of one thing within `bucket_start` to `bucket_end`."""

    bucket_start: datetime
    bucket_end: datetime
    base_model: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    session_id: str | None = None
    project_id: str | None = None
    estimated_cost_usd: float | None = None
    effective_rate_usd_per_million_tokens: float | None = None
    effective_rate_usd_per_gigabyte_month: float | None = None
    event_info: BillingEventInfo


class BillingUsageSession(Lenient):
    """What a session that used something says about itself."""

    user_metadata: dict[str, str] | None = None


class BillingUsageResponse(Lenient):
    """Usage, the sessions it names, and up to when costs are known."""

    data: list[BillingUsageEvent]
    sessions: dict[str, BillingUsageSession] = Field(default={})
    cost_data_through: datetime | None = None
