"""Domain values: frozen, over numpy, without torch and without any protocol's spelling."""

from weaver.types.adapter import Adapter, ModelState, OptimizerState
from weaver.types.data import Array, Datum, FloatArray, IntArray, ProvenanceSpan
from weaver.types.models import ModelFacts, ModelSource
from weaver.types.operations import (
    AdamParams,
    CreateFromState,
    CreateModel,
    ForwardBackward,
    LoadState,
    LoraSpec,
    Operation,
    OptimStep,
    SaveForSampler,
    SaveState,
)
from weaver.types.results import (
    ForwardBackwardResult,
    ModelCreated,
    OptimStepResult,
    Result,
    SamplerReady,
    StateLoaded,
    StateSaved,
)
from weaver.types.sampling import (
    AdapterRef,
    SampledSequence,
    SampleRequest,
    SampleResult,
    SamplingParams,
    StopReason,
    TopLogprobs,
)

__all__ = [
    "AdamParams",
    "Adapter",
    "AdapterRef",
    "Array",
    "CreateFromState",
    "CreateModel",
    "Datum",
    "FloatArray",
    "ForwardBackward",
    "ForwardBackwardResult",
    "IntArray",
    "LoadState",
    "LoraSpec",
    "ModelCreated",
    "ModelFacts",
    "ModelSource",
    "ModelState",
    "Operation",
    "OptimStep",
    "OptimStepResult",
    "OptimizerState",
    "ProvenanceSpan",
    "Result",
    "SampleRequest",
    "SampleResult",
    "SampledSequence",
    "SamplerReady",
    "SamplingParams",
    "SaveForSampler",
    "SaveState",
    "StateLoaded",
    "StateSaved",
    "StopReason",
    "TopLogprobs",
]
