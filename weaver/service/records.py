"""What the front door hands out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from weaver.domain import ADAMW, LoraSpec
from weaver.engine.mismatch import Mismatch


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
class Completion:
    """A sample request has settled: with a result, or with an error or a cancellation."""

    request_id: str
    succeeded: bool


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Every effective setting of a training model."""

    model_id: str
    base_model: str
    architecture: str
    tokenizer_location: str
    lora: LoraSpec
    optimizer: str = ADAMW


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
    public: bool = False
    optimizer: str = ADAMW


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A training run: a model that is or was trained, or that a copied checkpoint was given. Times are seconds since
    the epoch. `mismatch` is of the time since the server started."""

    model_id: str
    base_model: str
    lora: LoraSpec
    created: float
    last_request: float
    user_metadata: Mapping[str, str]
    last_checkpoint: CheckpointInfo | None
    last_sampler_checkpoint: CheckpointInfo | None
    mismatch: Mismatch | None = None


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some of a list, newest first; `total` counts all of it."""

    items: tuple[Item, ...]
    offset: int
    limit: int
    total: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """`ended` is None while it lives, then what ended it: a client's `success`, `errored` or `interrupted`, or
    `expired`; `ended_detail` is the client's own word on it."""

    session_id: str
    created: float
    ended: str | None
    ended_detail: str | None
    project_id: str | None
    display_name: str | None
    user_metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Holdings:
    """How many checkpoints there are, and their bytes."""

    count: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SupportedModel:
    """A base model this service offers."""

    name: str
    context_length: int
