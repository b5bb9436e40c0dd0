"""Creating a model, asking about it, letting it go."""

from typing import Any, Literal

from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.names import ModelID
from weaver.compat.tinker.types.optimizer import AdamOptimizerConfig, OptimizerConfig


class LoraConfig(Strict):
    """Which layers get a low-rank adapter, of which rank, and the seed they start from."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModelRequest(Strict):
    """A new adapter on a base model."""

    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    type: Literal["create_model"] = "create_model"


class CreateModelResponse(Lenient):
    """The new model's id."""

    model_id: ModelID
    type: Literal["create_model"] = "create_model"


class GetInfoRequest(Strict):
    """Asks about a model."""

    model_id: ModelID
    type: Literal["get_info"] = "get_info"


class ModelData(Lenient):
    """What a model is made of."""

    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class GetInfoResponse(Lenient):
    """A model as its server has it."""

    type: Literal["get_info"] | None = None
    model_data: ModelData
    model_id: ModelID
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool | None = None
    lora_rank: int | None = None
    model_name: str | None = None


class UnloadModelRequest(Strict):
    """Lets a model go."""

    model_id: ModelID
    type: Literal["unload_model"] = "unload_model"


class UnloadModelResponse(Lenient):
    """The model that was let go."""

    model_id: ModelID
    type: Literal["unload_model"] | None = None
