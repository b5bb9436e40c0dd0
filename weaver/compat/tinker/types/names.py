"""Words with a fixed meaning in Tinker's protocol, and the two kinds of ids."""

from enum import StrEnum, auto
from typing import Literal, TypeAlias

ModelID: TypeAlias = str
RequestID: TypeAlias = str

TensorDtype: TypeAlias = Literal["int64", "float32"]
StopReason: TypeAlias = Literal["length", "stop"]
CheckpointType: TypeAlias = Literal["training", "sampler", "external"]
SamplingClientKind: TypeAlias = Literal["snapshot", "inflight"]
Severity: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
EventType: TypeAlias = Literal["SESSION_START", "SESSION_END", "UNHANDLED_EXCEPTION", "GENERIC_EVENT"]

# A help for editors only: any other name reaches the server, which knows the losses of its plugins.
LossFnType: TypeAlias = Literal[
    "cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce", "custom"
]


class RequestErrorCategory(StrEnum):
    """Whose fault a failed operation is."""

    Unknown = auto()
    Server = auto()
    User = auto()
