"""The values that users of Weaver's API hand over and get back. torch is imported only where a tensor is asked for."""

from weaver.types.datasets import (
    WEAVER_REDACTED_TOKEN_ID,
    ManagedDatasetInfo,
    ManagedDatasetPage,
    ManagedDatasetVisibility,
    SampleRef,
    SampleRefLength,
    SampleRefOutput,
)
from weaver.types.datum import Datum
from weaver.types.model_input import ModelInput, ModelInputChunk
from weaver.types.params import (
    AdamParams,
    LogprobsParams,
    LoraConfig,
    PauseMode,
    SamplingParams,
    ScoreCenteringConfig,
    coerce_pause_mode,
)
from weaver.types.records import Checkpoint, Deployment, WeightsArtifact
from weaver.types.supported_model import SupportedModel, SupportedModelPrice, SupportedTrainingMode
from weaver.types.tensor import TensorData

__all__ = [
    "WEAVER_REDACTED_TOKEN_ID",
    "AdamParams",
    "Checkpoint",
    "Datum",
    "Deployment",
    "LogprobsParams",
    "LoraConfig",
    "ManagedDatasetInfo",
    "ManagedDatasetPage",
    "ManagedDatasetVisibility",
    "ModelInput",
    "ModelInputChunk",
    "PauseMode",
    "SampleRef",
    "SampleRefLength",
    "SampleRefOutput",
    "SamplingParams",
    "ScoreCenteringConfig",
    "SupportedModel",
    "SupportedModelPrice",
    "SupportedTrainingMode",
    "TensorData",
    "WeightsArtifact",
    "coerce_pause_mode",
]
