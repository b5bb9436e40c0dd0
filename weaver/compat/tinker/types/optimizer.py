"""Optimizers: which one a model is created with, and the numbers of one step."""

from typing import Any, Literal, TypeAlias

from pydantic import AliasChoices, ConfigDict, Field, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer

from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.names import ModelID


class OptimizerConfigBase(Strict):
    """An optimizer chosen by the name `type`; fields of optimizers not known here are kept."""

    model_config = ConfigDict(extra="allow")

    type: str


class AdamOptimizerConfig(OptimizerConfigBase):
    """AdamW, which models have unless another one is asked for."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["adamw"] = "adamw"


class DimuonOptimizerConfig(OptimizerConfigBase):
    """Dimuon; such a model is stepped with DimuonParams."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["dimuon"] = "dimuon"
    version: Literal[1] = 1


OptimizerConfig: TypeAlias = AdamOptimizerConfig | SerializeAsAny[OptimizerConfigBase]


class AdamParams(Strict):
    """One step of AdamW: weight decay is decoupled; `grad_clip_norm` bounds the norm of all gradients, 0 does not."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimParamsBase(Strict):
    """One step of the optimizer named `type`; fields of optimizers not known here are kept."""

    model_config = ConfigDict(extra="allow")

    type: str


class DimuonParams(OptimParamsBase):
    """One step of Dimuon: `beta1` is the momentum's; a `grad_clip_norm` that is not positive leaves the gradients."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    type: Literal["dimuon"] = "dimuon"
    learning_rate: float = Field(ge=0)
    grad_clip_norm: float = 0.0
    beta1: float = Field(default=0.9, ge=0, lt=1)


OptimParams: TypeAlias = AdamParams | SerializeAsAny[OptimParamsBase]


class OptimStepRequest(Strict):
    """A step, in the model's order. JSON has Adam's numbers as `adam_params`, others as `optimizer_params`."""

    optim_params: OptimParams = Field(
        validation_alias=AliasChoices("optim_params", "adam_params", "optimizer_params"),
    )
    model_id: ModelID
    seq_id: int | None = None
    type: Literal["optim_step"] = "optim_step"

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        if "optim_params" in written:
            name = "adam_params" if isinstance(self.optim_params, AdamParams) else "optimizer_params"
            written[name] = written.pop("optim_params")
        return written


class OptimStepResponse(Lenient):
    """What the server measured in a step."""

    metrics: dict[str, float] | None = None
