"""What a client can ask of one training model. An operation is a value: it is checked, ordered and run elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from weaver.domain.data import Datum


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Which low-rank adapter to train on which linear layers (Hu et al. 2021, arXiv:2106.09685).

    `scale` multiplies the update B·A: alpha / rank. With `seed` None the service draws one and tells it in `get_info`.
    Of the layers that the flags name, `only_modules` picks those whose names end in one of its own; empty: all.
    """

    rank: int = 32
    alpha: float = 32.0
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True
    only_modules: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "LoraSpec":
        """From what `asdict` made of one, written as JSON and read again."""
        return cls(**{**row, "only_modules": tuple(row.get("only_modules", ()))})

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class AdamParams:
    """One AdamW step (Kingma & Ba 2015; decoupled weight decay: Loshchilov & Hutter 2019). Defaults are Tinker's.

    `grad_clip_norm` bounds the global L2 norm of this model's gradients; 0 switches clipping off.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class DimuonParams:
    """One step of Muon on each of the two factors of every LoRA pair; docs/protocol.md has the formula.

    The learning rate multiplies a direction whose Frobenius norm is about the root of the rank. `grad_clip_norm` bounds
    the global L2 norm of this model's gradients; at 0 and below clipping is off.
    """

    learning_rate: float
    grad_clip_norm: float = 0.0
    beta1: float = 0.9


OptimParams = AdamParams | DimuonParams

ADAMW: Final = "adamw"
DIMUON: Final = "dimuon"
OPTIMIZERS: Final = {ADAMW: AdamParams, DIMUON: DimuonParams}
"""By the name that a model is created with: the parameters its steps take."""


@dataclass(frozen=True, slots=True)
class CreateModel:
    """Make a new adapter on `base_model`; its weights follow from the spec and its seed alone."""

    base_model: str
    lora: LoraSpec
    optimizer_kind: str = ADAMW


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBackward:
    """Compute each datum's loss and, when `backward`, add its gradients to the model's accumulated ones."""

    data: tuple[Datum, ...]
    loss: str
    config: Mapping[str, float | str] = field(default_factory=dict)
    backward: bool = True


@dataclass(frozen=True, slots=True)
class OptimStep:
    """Apply the accumulated gradients once, then clear them."""

    params: OptimParams


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write adapter and, when `optimizer`, its state under `tinker://<model>/weights/<name>`."""

    name: str
    overwrite: bool = False
    ttl_seconds: int | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    optimizer: bool = True


@dataclass(frozen=True, slots=True)
class SaveForSampler:
    """Make an immutable snapshot of the adapter for sampling.

    With a `name` it is kept under `tinker://<model>/sampler_weights/<name>`; without, it lives as long as its session
    and the result is the id of a sampling session. With `inflight` (and no name) all inflight sampling sessions of the
    model, those that are there already and the new one, sample from it from now on.
    """

    name: str | None = None
    ttl_seconds: int | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    inflight: bool = False


@dataclass(frozen=True, slots=True)
class SaveExternal:
    """Write the adapter for the world outside under `tinker://<model>/external_weights/<name>`: PEFT's files, each
    encrypted to `recipients` (public keys of the format age) where they are given."""

    name: str
    ttl_seconds: int | None = None
    recipients: tuple[str, ...] | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadState:
    """Replace adapter weights by a checkpoint's, and the optimizer's state too when `optimizer`, else clear it."""

    path: str
    optimizer: bool


@dataclass(frozen=True, slots=True)
class CreateFromState:
    """Make a new adapter and give it a checkpoint's weights (and optimizer state when `optimizer`) in one step."""

    base_model: str
    lora: LoraSpec
    path: str
    optimizer: bool
    optimizer_kind: str = ADAMW


Operation = (
    CreateModel | CreateFromState | ForwardBackward | OptimStep | SaveState | SaveForSampler | SaveExternal | LoadState
)
