"""What a model, a step and a sample are asked for with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Literal, NotRequired, TypedDict


@dataclass(slots=True)
class AdamParams:
    """One step of AdamW. The gradient is clipped to `grad_clip_norm`, and weights decay by `weight_decay`."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-2
    grad_clip_norm: float = 1.0

    def to_payload(self) -> dict[str, float]:
        """As JSON has it: all six, always."""
        return asdict(self)


@dataclass(slots=True)
class LoraConfig:
    """Which layers get low-rank pairs, of which rank; `seed` makes their first values repeatable."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True

    def to_payload(self) -> dict[str, object]:
        """As JSON has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class ScoreCenteringConfig(TypedDict):
    """Ask for the `head_size` likeliest tokens at each position."""

    head_size: int
    transport: NotRequired[Literal["inline", "ref"]]


@dataclass(slots=True)
class SamplingParams:
    """How tokens are drawn. `stop` has texts and token ids; a text alone is one text."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: Sequence[str | int] = field(default_factory=list)
    seed: int | None = None
    sampling_seed: int | None = None
    score_centering: ScoreCenteringConfig | None = None

    def to_payload(self) -> dict[str, object]:
        """As JSON has it. Raises ValueError for a stop that is neither a text nor a token id."""
        texts, ids = self._stops()
        given: dict[str, object] = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        optional = {
            "max_tokens": self.max_tokens,
            "stop": texts or None,
            "stop_token_ids": ids or None,
            "seed": self.seed,
            "sampling_seed": self.sampling_seed,
            "score_centering": self.score_centering,
        }
        return given | {name: value for name, value in optional.items() if value is not None}

    def _stops(self) -> tuple[list[str], list[int]]:
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        for index, one in enumerate(stops):
            if isinstance(one, bool) or not isinstance(one, str | int):
                raise ValueError(f"stop[{index}] is {one!r}; a stop is a text or a token id")
        return [one for one in stops if isinstance(one, str)], [one for one in stops if isinstance(one, int)]


@dataclass(slots=True)
class LogprobsParams:
    """How logprobs of a prompt are computed: `loss_fn_config` may have a temperature."""

    return_rollout_token_expert: bool = False
    loss_fn_config: Mapping[str, Any] | None = None

    def to_payload(self) -> dict[str, object]:
        """As JSON has it."""
        payload: dict[str, object] = {}
        if self.loss_fn_config:
            payload["loss_fn_config"] = dict(self.loss_fn_config)
        if self.return_rollout_token_expert:
            payload["return_rollout_token_expert"] = True
        return payload


class PauseMode(str, Enum):  # noqa: UP042 -- StrEnum prints differently
    """What becomes of running requests when an engine is paused: ended, begun anew, or continued."""

    ABORT = "abort"
    RETRACT = "retract"
    IN_PLACE = "in_place"


def coerce_pause_mode(mode: PauseMode | str) -> str:
    """The mode's text. Raises ValueError for a mode there is not."""
    try:
        return PauseMode(mode).value
    except ValueError:
        modes = ", ".join(one.value for one in PauseMode)
        raise ValueError(f"invalid pause mode {mode!r}: expected one of {modes}") from None
