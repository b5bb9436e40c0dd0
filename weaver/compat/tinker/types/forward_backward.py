"""A pass over data: what is asked and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from weaver.compat.tinker.types.datum import Datum, LossFnOutput
from weaver.compat.tinker.types.names import LossFnType, ModelID


@dataclass(frozen=True)
class ForwardBackwardInput:
    """Data and the loss they go through."""

    data: list[Datum]
    loss_fn: LossFnType
    loss_fn_config: Mapping[str, float | str] | None = None


@dataclass(frozen=True)
class ForwardBackwardRequest:
    """A pass with gradients, in the model's order of `seq_id`."""

    forward_backward_input: ForwardBackwardInput
    model_id: ModelID
    seq_id: int | None = None


@dataclass(frozen=True)
class ForwardRequest:
    """A pass without gradients, in the model's order of `seq_id`."""

    forward_input: ForwardBackwardInput
    model_id: ModelID
    seq_id: int | None = None


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """One dictionary of tensors for each datum, in the order of the data, and metrics of the whole pass.

    The loss is `metrics["loss:sum"]`: metric names end in how the parts of a split pass were put together.
    """

    loss_fn_output_type: str
    loss_fn_outputs: list[LossFnOutput]
    metrics: dict[str, float] = field(default_factory=dict)
