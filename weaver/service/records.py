"""What the front door hands out."""

from collections.abc import Mapping
from dataclasses import dataclass

from weaver.types import LoraSpec


@dataclass(frozen=True, slots=True)
class Ticket:
    """The acknowledgement of an operation: it will happen, in its turn. `request_id` finds its result."""

    request_id: str
    model_id: str


@dataclass(frozen=True, slots=True)
class SampleTicket:
    """The acknowledgement of a sample request; one id for each sequence it will draw."""

    request_id: str
    sequence_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Every effective setting of a training model."""

    model_id: str
    base_model: str
    architecture: str
    tokenizer_location: str
    lora: LoraSpec


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """What a sampling session samples from. `model_path` None: the base model, or a snapshot without a name."""

    sampling_session_id: str
    base_model: str
    model_path: str | None


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A stored checkpoint. Times are seconds since the epoch."""

    path: str
    model_id: str
    kind: str
    name: str
    base_model: str
    lora: LoraSpec
    created: float
    expires: float | None
    size_bytes: int
    user_metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SupportedModel:
    """A base model this service offers."""

    name: str
    context_length: int
