"""Saving, loading, copying and describing weights."""

from datetime import datetime
from typing import Any, Literal

from weaver.compat.tinker.console import checkpoint_url, playground_url
from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.checkpoints import ParsedCheckpointTinkerPath
from weaver.compat.tinker.types.names import ModelID, SamplingClientKind
from weaver.compat.tinker.types.optimizer import AdamOptimizerConfig, OptimizerConfig


class SaveWeightsRequest(Strict):
    """Weights and optimizer state, to go on training from."""

    model_id: ModelID
    path: str | None = None
    seq_id: int | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsResponse(Lenient):
    """Where a training state was saved."""

    path: str
    type: Literal["save_weights"] | None = None

    def get_console_url(self) -> str:
        """The checkpoint's page in the vendor's console."""
        return _console_url(self.path)


class SaveWeightsForSamplerRequest(Strict):
    """Weights to sample from: under a name, or for one sampling session."""

    model_id: ModelID
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: SamplingClientKind = "snapshot"
    seq_id: int | None = None
    ttl_seconds: int | None = None
    user_metadata: dict[str, str] | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsForSamplerResponseInternal(Lenient):
    """Where weights for sampling were saved: a path or a sampling session, as the request asked."""

    path: str | None = None
    sampling_session_id: str | None = None
    type: Literal["save_weights_for_sampler"] | None = None


class SaveWeightsForSamplerResponse(Lenient):
    """Where weights for sampling were saved."""

    path: str
    type: Literal["save_weights_for_sampler"] | None = None

    def get_console_url(self) -> str:
        """The checkpoint's page in the vendor's console."""
        return _console_url(self.path)

    def get_playground_url(self) -> str:
        """The vendor's page for trying the checkpoint."""
        return playground_url(self.path)


class SaveWeightsExternalRequest(Strict):
    """Weights to take home, encrypted for the age keys that are named."""

    model_id: ModelID
    path: str
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"


class SaveWeightsExternalResponseInternal(Lenient):
    """Where an export was saved, and its size."""

    path: str | None = None
    size_bytes: int | None = None
    type: Literal["save_weights_external"] | None = None


class SaveWeightsExternalResponse(Lenient):
    """Where an export was saved."""

    path: str
    type: Literal["save_weights_external"] | None = None


class ExternalWeightsUrlsResponse(Lenient):
    """A link for each file of an export, good until `expires`."""

    urls: dict[str, str]
    expires: datetime


class LoadWeightsRequest(Strict):
    """Saved weights into a model: a new one (session and number) or one that is there (`model_id`)."""

    model_id: ModelID | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None
    type: Literal["load_weights"] = "load_weights"


class LoadWeightsResponse(Lenient):
    """What was loaded into which model."""

    path: str | None = None
    model_id: ModelID | None = None
    type: Literal["load_weights"] | None = None


class WeightsInfoResponse(Lenient):
    """What a model needs to be for these weights."""

    base_model: str
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool
    lora_rank: int | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None


class CopyWeightsRequest(Strict):
    """A copy of somebody's weights into a session or a project."""

    session_id: str | None = None
    model_seq_id: int | None = None
    destination_project_id: str | None = None
    source_path: str
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


class CopyWeightsResponse(Lenient):
    """Where the copy is."""

    tinker_path: str


def _console_url(path: str) -> str:
    parsed = ParsedCheckpointTinkerPath.from_tinker_path(path)
    return checkpoint_url(parsed.training_run_id, parsed.checkpoint_id)
