"""What settled training operations give back."""

from collections.abc import Mapping
from dataclasses import dataclass

from weaver.domain.data import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBackwardResult:
    """One logprobs array per datum, shaped like its `target_tokens`; metrics are named `name:reduction`. `outputs` has
    the arrays that the loss gives back beside, one mapping per datum, or is empty when it gives back none."""

    logprobs: tuple[FloatArray, ...]
    metrics: Mapping[str, float]
    outputs: tuple[Mapping[str, FloatArray], ...] = ()

    @property
    def fields(self) -> tuple[Mapping[str, FloatArray], ...]:
        """Per datum, all that is known of it by name: `logprobs` and the loss's own outputs."""
        outputs = self.outputs or ({},) * len(self.logprobs)
        return tuple({"logprobs": array, **more} for array, more in zip(self.logprobs, outputs, strict=True))


@dataclass(frozen=True, slots=True)
class OptimStepResult:
    """`grad_norm` is the global L2 norm before clipping, among others."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelCreated:
    model_id: str


@dataclass(frozen=True, slots=True)
class StateSaved:
    path: str


@dataclass(frozen=True, slots=True)
class StateLoaded:
    model_id: str
    path: str


@dataclass(frozen=True, slots=True)
class SamplerReady:
    """A snapshot made without a name: sample from it through this sampling session."""

    sampling_session_id: str


@dataclass(frozen=True, slots=True)
class CustomLossCreated:
    """`loss_id` names the loss in passes of the same session."""

    loss_id: str


Result = (
    ForwardBackwardResult | OptimStepResult | ModelCreated | StateSaved | StateLoaded | SamplerReady | CustomLossCreated
)
