"""The JSON bodies of Tinker's wire. `parse` checks one and raises InvalidInput with a sentence that names the field.

Bodies that carry a computation refuse unknown fields by name: a field nobody reads is a computation not done. Bodies
about sessions, telemetry and configuration ignore what they do not know. `None` is the same as absent, but for numbers
that every client sends: there it is what its JSON made of NaN or infinity.
"""

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from weaver.errors import InvalidInput

SequenceNumber = Annotated[int, Field(ge=0, lt=2**63)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Metadata = dict[str, str]


def refused(why: str, *accepted: Any) -> BeforeValidator:
    """Accept only these values of a field, or none; any other is refused with the reason.

    Only where some are accepted is the value repeated: it may be long or secret.
    """

    def check(value: Any) -> Any:
        if any(value == allowed and type(value) is type(allowed) for allowed in accepted):
            return value
        found = f"is {reprlib.repr(value)}" if accepted else "must be absent"
        raise PydanticCustomError("refused", "{sentence}", {"sentence": f"{found}: {why}"})

    return BeforeValidator(check, json_schema_input_type=Literal[accepted] if accepted else None)


def _check_number(value: Any) -> Any:
    """Tinker's SDK writes `learning_rate=float("nan")` as null; a default in its place would train silently."""
    if value is None:
        raise PydanticCustomError("refused", "is null, which is how JSON has NaN and infinity: give a finite number")
    return value


Number = Annotated[float | None, BeforeValidator(_check_number, json_schema_input_type=float)]
"""Absent or a number, never null."""


_Stop = str | list[int] | list[str]


def _check_stop(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        for kind in (int, str):
            if all(type(item) is kind for item in value):
                return value
    raise PydanticCustomError("refused", "must be a string, a list of strings or a list of token ids, not mixed")


def _check_chunk(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind is None or kind == "encoded_text":
        return value
    raise PydanticCustomError("refused", "is of type {kind}: this server reads encoded_text only", {"kind": repr(kind)})


class Ignoring(BaseModel):
    """A body whose unknown fields change nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, protected_namespaces=())

    numbers: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _none_is_absent(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {key: value for key, value in raw.items() if value is not None or key in cls.numbers}


class Computing(Ignoring):
    """A body whose every field is read or refused. `type` repeats the endpoint's name."""

    model_config = ConfigDict(extra="forbid")

    type: str | None = None


class CreateSession(Ignoring):
    tags: list[str] = Field(default_factory=list)
    user_metadata: Metadata = Field(default_factory=dict)
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class SessionHeartbeat(Ignoring):
    session_id: str


class FinishReason(Ignoring):
    type: Literal["success", "errored", "interrupted"]


class FinishSession(Ignoring):
    reason: FinishReason
    detail: str | None = None


class GetInfo(Ignoring):
    model_id: str


class WeightsInfo(Ignoring):
    tinker_path: str


class RetrieveFuture(Ignoring):
    request_id: str
    allow_metadata_only: bool = False


class SamplingSessionTarget(Ignoring):
    type: Annotated[str, refused("this server waits for sampling sessions only", "sampling_session")]
    sampling_session_id: str
    cloned_sampler_id: SequenceNumber = 0


class RetrieveFutures(Ignoring):
    target: SamplingSessionTarget
    prev_cursor: SequenceNumber = 0
    timeout: float | None = Field(default=None, ge=0)
    retrieved_request_ids: list[str] = Field(default_factory=list)


class JoinSamplingSession(Ignoring):
    sampling_session_id: str


class CancelFuture(Ignoring):
    request_id: str


class LoraConfig(Computing):
    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Computing):
    type: Annotated[str, refused("this server trains with 'adamw' or 'dimuon'", "adamw", "dimuon")] = "adamw"
    version: Annotated[int | None, refused("there is a version 1 of 'dimuon' only", 1)] = None

    @model_validator(mode="after")
    def _version_of_dimuon(self) -> "OptimizerConfig":
        if self.type != "dimuon" and self.version is not None:
            raise PydanticCustomError("refused", "has a version, which only the optimizer 'dimuon' has")
        return self


class CreateModel(Computing):
    session_id: str
    model_seq_id: SequenceNumber
    base_model: str
    user_metadata: Metadata = Field(default_factory=dict)
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()


class AdamParams(Computing):
    """Absent fields mean Tinker's defaults, which are those of `weaver.domain.AdamParams`."""

    numbers = frozenset({"learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"})

    learning_rate: Number = None
    beta1: Number = None
    beta2: Number = None
    eps: Number = None
    weight_decay: Number = None
    grad_clip_norm: Number = None


class ModelOperation(Computing):
    """An operation in one model's order."""

    model_id: str
    seq_id: SequenceNumber


class DimuonParams(Computing):
    """Absent fields mean Tinker's defaults, which are those of `weaver.domain.DimuonParams`."""

    numbers = frozenset({"learning_rate", "grad_clip_norm", "beta1"})

    type: Annotated[str, refused("the parameters of 'adamw' are adam_params", "dimuon")]
    learning_rate: Annotated[float, BeforeValidator(_check_number, json_schema_input_type=float)]
    grad_clip_norm: Number = None
    beta1: Number = None


class OptimStep(ModelOperation):
    """Exactly one of both, as the model's optimizer asks."""

    adam_params: AdamParams | None = None
    optimizer_params: DimuonParams | None = None

    @model_validator(mode="after")
    def _one_optimizer(self) -> "OptimStep":
        if (self.adam_params is None) == (self.optimizer_params is None):
            raise PydanticCustomError("refused", "one of adam_params and optimizer_params must be given, and not both")
        return self


class SaveWeights(ModelOperation):
    path: str
    overwrite: bool = False
    ttl_seconds: int | None = None
    user_metadata: Metadata = Field(default_factory=dict)


class SaveWeightsExternal(ModelOperation):
    path: str
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None


class SaveWeightsForSampler(ModelOperation):
    """With a `path` the snapshot is kept under that name; with `sampling_session_seq_id` it is for sampling at once."""

    path: str | None = None
    sampling_session_seq_id: SequenceNumber | None = None
    kind: Annotated[str, refused("samplers are 'snapshot' or 'inflight'", "snapshot", "inflight")] = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_purpose(self) -> "SaveWeightsForSampler":
        if (self.path is None) == (self.sampling_session_seq_id is None):
            raise PydanticCustomError("refused", "one of path and sampling_session_seq_id must be given, and not both")
        if self.kind == "inflight" and self.path is not None:
            raise PydanticCustomError(
                "refused", "an inflight sampler changes, so it is not kept under a path: leave it out"
            )
        return self


_NO_TOKEN = refused("this server has no access tokens for weights; every checkpoint is open to its keys")


class LoadWeights(ModelOperation):
    """Into a model that exists."""

    path: str
    optimizer: bool
    weights_access_token: Annotated[Any, _NO_TOKEN] = None


class LoadNewModel(Computing):
    """Into a model that this request creates."""

    session_id: str
    model_seq_id: SequenceNumber
    path: str
    optimizer: bool
    base_model: str | None = None
    user_metadata: Metadata = Field(default_factory=dict)
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: Annotated[Any, _NO_TOKEN] = None


class CreateSamplingSession(Computing):
    session_id: str
    sampling_session_seq_id: SequenceNumber
    base_model: str | None = None
    model_path: str | None = None


class TextChunk(Computing):
    tokens: list[Token]


class Prompt(Computing):
    chunks: list[Annotated[TextChunk, BeforeValidator(_check_chunk)]]


class SamplingParams(Computing):
    numbers = frozenset({"temperature", "top_p"})

    max_tokens: int | None = None
    seed: int | None = None
    stop: Annotated[list[int] | list[str] | None, BeforeValidator(_check_stop, json_schema_input_type=_Stop | None)] = (
        None
    )
    temperature: Annotated[float, BeforeValidator(_check_number, json_schema_input_type=float)] = 1.0
    top_k: int = -1
    top_p: Annotated[float, BeforeValidator(_check_number, json_schema_input_type=float)] = 1.0


class TargetTokens(Computing):
    """A two-dimensional int64 tensor as JSON: dense, or with both index lists, in compressed sparse rows."""

    data: list[int]
    dtype: Annotated[str, refused("token ids are int64", "int64")]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


_BY_SESSION = "this server samples through sampling_session_id only"


class Sample(Computing):
    sampling_session_id: str
    seq_id: SequenceNumber
    num_samples: int = 1
    prompt: Prompt
    sampling_params: SamplingParams
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TargetTokens | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool = False
    base_model: Annotated[Any, refused(_BY_SESSION)] = None
    model_path: Annotated[Any, refused(_BY_SESSION)] = None


Body = TypeVar("Body", bound=Ignoring)


def parse(model: type[Body], raw: object) -> Body:
    """The checked body. Raises InvalidInput naming every field at fault."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InvalidInput("; ".join(sentence(detail) for detail in error.errors(include_url=False)[:8])) from None


def sentence(detail: ErrorDetails) -> str:
    """What is wrong with one field, which it names."""
    field = field_path(detail["loc"])
    match detail["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is not a field this server reads here"
        case "refused":
            return f"{field} {detail['msg']}".strip()
        case _:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            return f"{field or 'the body'}: {message}, not {reprlib.repr(detail['input'])}"


def field_path(location: tuple[int | str, ...]) -> str:
    """`("prompt", "chunks", 0)` -> `prompt.chunks[0]`."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return parts.removeprefix(".")
