"""The bodies of this wire. `parse` checks one and raises InvalidInput with a sentence that names the field.

Numbers of tensors are read elsewhere (`tensors`): in process they are arrays. Bodies that carry a computation refuse
fields nobody reads.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from weaver.compat.tinker.requests import Ignoring, Number, parse, refused

__all__ = ["parse"]


class Strict(Ignoring):
    """Every field is read or refused."""

    model_config = ConfigDict(extra="forbid")


SeqId = Annotated[int, Field(ge=0, lt=2**63)]


class SchedulingPolicy(Strict):
    mode: Literal["auto", "fixed", "prefer"] = "auto"
    clusters: list[str] = Field(default_factory=list)


class CreateSession(Strict):
    tags: list[str] = Field(default_factory=list)
    user_metadata: dict[str, Any] = Field(default_factory=dict)
    sdk_version: str = ""
    name: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    organization_id: str | None = None
    project_id: str | None = None
    scheduling_policy: SchedulingPolicy | None = None


class LoraConfig(Strict):
    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModel(Strict):
    model_seq_id: SeqId
    base_model: str
    training_mode: str | None = None
    lora_config: LoraConfig = Field(default_factory=lambda: LoraConfig(rank=32))
    user_metadata: dict[str, Any] = Field(default_factory=dict)
    performance_tier: str | None = None
    training_max_sequence_length: Annotated[int, Field(ge=2)] | None = None


class Terminate(Strict):
    instance_types: list[Literal["trainer", "inference"]] | None = None


class Pass(Strict):
    loss_fn: str
    data: list[Any]
    loss_fn_config: dict[str, Any] = Field(default_factory=dict)


class PassPayload(Strict):
    model_id: str | None = None
    seq_id: SeqId
    tensor_transport: Literal["default", "http-binary"] = "default"
    tensor_compression: Literal["raw", "zstd"] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class ForwardPayload(PassPayload):
    forward_input: Pass


class ForwardBackwardPayload(PassPayload):
    forward_backward_input: Pass


class Forward(Strict):
    payload: ForwardPayload


class ForwardBackward(Strict):
    payload: ForwardBackwardPayload


class AdamParams(Strict):
    """All six must be there: this SDK always sends them, and its defaults are not the service's."""

    numbers = frozenset({"learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"})

    learning_rate: Annotated[float, Number.__metadata__[0]]
    beta1: Annotated[float, Number.__metadata__[0]]
    beta2: Annotated[float, Number.__metadata__[0]]
    eps: Annotated[float, Number.__metadata__[0]]
    weight_decay: Annotated[float, Number.__metadata__[0]]
    grad_clip_norm: Annotated[float, Number.__metadata__[0]]


class OptimizerStepPayload(Strict):
    model_id: str | None = None
    seq_id: SeqId
    adam_params: AdamParams


class OptimizerStep(Strict):
    payload: OptimizerStepPayload


class ExportSampler(Strict):
    seq_id: SeqId
    path: str | None = None
    ttl_seconds: int | None = None


class SaveCheckpoint(Strict):
    type: Literal["weight", "weight_and_optimizer", "sampling"] = "weight"
    name: str | None = None
    ttl_seconds: int | None = None


class SetTtl(Strict):
    path: str
    ttl_seconds: int | None = None


class Load(Strict):
    path: str
    include_optimizer: bool = False


class CreateSamplingSession(Strict):
    sampling_session_seq_id: SeqId
    base_model: str | None = None
    model_path: str | None = None
    model_id: str | None = None


class SamplingParams(Strict):
    numbers = frozenset({"temperature", "top_p"})

    max_tokens: int | None = None
    temperature: Annotated[float, Number.__metadata__[0]] = 1.0
    top_p: Annotated[float, Number.__metadata__[0]] = 1.0
    top_k: int = -1
    stop: list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    seed: int | None = None
    sampling_seed: int | None = None


class ScoreCentering(Strict):
    head_size: Annotated[int, Field(ge=1, le=128)]
    transport: Literal["inline", "ref"] = "inline"


_NO_REFS = "this server tells sampling masks inline only"
_NO_ROUTING = "this server records no routing of experts"


class Sample(Strict):
    prompt: dict[str, Any]
    sampling_params: SamplingParams = Field(default_factory=SamplingParams)
    num_samples: int = 1
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    return_sampling_mask: bool = False
    sampling_mask_transport: Annotated[str, refused(_NO_REFS, "inline")] = "inline"
    return_old_logprob: bool = False
    return_moe_topk_indices: Annotated[bool, refused(_NO_ROUTING, False)] = False
    score_centering: ScoreCentering | None = None


class Logprobs(Strict):
    prompt: dict[str, Any]
    loss_fn_config: dict[str, Any] = Field(default_factory=dict)
    return_rollout_token_expert: Annotated[bool, refused(_NO_ROUTING, False)] = False


class Export(Strict):
    format: Annotated[str, refused("exports are in Hugging Face's format", "huggingface")] = "huggingface"
    merge_adapter: bool = False
    ttl_seconds: int | None = None
    force: bool = False


class CreateDeployment(Strict):
    name: str
    gpu_type: str | None = None
    replicas: int = 1
    gpus_per_replica: int | None = None
    overwrite: bool = False


class MetricPoint(Strict):
    model_id: str
    name: Annotated[str, Field(min_length=1)]
    value: float
    step: Annotated[int, Field(ge=0)]
    occurred_at: str
    labels: dict[str, Any] = Field(default_factory=dict)


class LogMetrics(Strict):
    metrics: Annotated[list[MetricPoint], Field(max_length=1000)]
