"""What a service tells of saved weights and of where they are served."""

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Self


class Record:
    """Made of an answer: fields that it lacks keep their defaults, fields nobody reads are left out."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Self:
        """From a service's answer."""
        known = cls.__dataclass_fields__
        given = {name: value for name, value in payload.items() if name in known and value is not None}
        return cls(**{"id": "", **given})


@dataclass(frozen=True)
class Checkpoint(Record):
    """Saved weights. `path` is weaver://{model}/checkpoints/{name}; `ttl_seconds` None: kept until deleted."""

    id: str
    path: str
    name: str | None = None
    checkpoint_type: str = "weight"
    status: str | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
    ttl_seconds: int | None = None
    created_at: str | None = None
    expires_at: str | None = None

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Self:
        """From a service's answer, which may call the type `type`."""
        known: Mapping[str, Any] = {"path": "", "checkpoint_type": payload.get("type")}
        return super().from_payload({**known, **payload})


@dataclass(frozen=True)
class WeightsArtifact(Record):
    """Weights in Hugging Face's format: `kind` hf_adapter (PEFT) or hf_model; `manifest` has sizes and sha256."""

    id: str
    checkpoint_id: str | None = None
    model_id: str | None = None
    kind: str = "hf_model"
    status: str | None = None
    uri: str | None = None
    size_bytes: int | None = None
    manifest: dict[str, Any] | None = None
    error: str | None = None
    ttl_seconds: int | None = None
    expires_at: str | None = None
    created_at: str | None = None
    updated_at: str | None = None


@dataclass(frozen=True)
class Deployment(Record):
    """A checkpoint under a name of its own at an OpenAI-compatible `endpoint`."""

    id: str
    checkpoint_id: str | None = None
    artifact_id: str | None = None
    model_id: str | None = None
    name: str | None = None
    status: str | None = None
    endpoint: str | None = None
    northgate_model_id: str | None = None
    gpu_type: str | None = None
    replicas: int | None = None
    gpus_per_replica: int | None = None
    error: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
