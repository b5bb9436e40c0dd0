"""The contract of a training backend, and the record a backend plugin yields.

A backend holds one base model and any number of adapters ("models") on it. One thread owns it: no method is called
while another runs, so it needs no locks. What arrives has been checked at the door; a backend trusts it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from weaver.errors import WeaverError
from weaver.loss import Loss
from weaver.types import Datum, ForwardBackwardResult, LoraSpec, ModelFacts, ModelSource, ModelState, OptimParams


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One model's forward (and backward) over some data with one loss. `config` is complete: defaults are filled in."""

    model_id: str
    data: Sequence[Datum]
    loss: Loss
    config: Mapping[str, float]
    backward: bool


class Backend(Protocol):
    """One base model, frozen, and the adapters being trained on it."""

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        """Add an adapter. Its initial weights follow from `lora` alone, whose seed is set; B is zero."""

    def drop_model(self, model_id: str) -> None:
        """Free an adapter, its gradients and its optimizer state."""

    def forward_backward(self, passes: Sequence[Pass]) -> Sequence[ForwardBackwardResult | WeaverError]:
        """Run passes of any models together; one result, or the error that stopped it, per pass in order.

        Where `backward`, the gradients of the sum of the losses are added to the model's accumulated ones: all of a
        pass's or, when it fails, none. A pass that fails changes no other pass's result.
        """

    def optim_step(self, model_id: str, params: OptimParams) -> Mapping[str, float]:
        """Apply and clear the accumulated gradients (zero ones where no pass ran). Returns at least `grad_norm`.

        The parameters are always of one optimizer for one model; raises InvalidInput for one that it does not have.
        """

    def export_state(self, model_id: str, *, optimizer: bool) -> ModelState:
        """Copies of the adapter's weights and, when asked, of its optimizer state."""

    def import_state(self, model_id: str, state: ModelState) -> None:
        """Replace an existing adapter's weights; its optimizer state too, or clear it where the state has none.

        Accumulated gradients are cleared: they belong to the weights that are gone.
        """

    def close(self) -> None:
        """Free everything."""


@dataclass(frozen=True, slots=True)
class BackendFactory:
    """What a backend plugin yields. `describe` reads a model's configuration; `open` loads it and may take minutes.

    Both import their heavy packages inside, so that listing backends imports none.
    """

    name: str
    describe: Callable[[ModelSource], ModelFacts]
    open: Callable[[ModelSource], Backend]
    description: str = ""


__all__ = ["Backend", "BackendFactory", "ModelFacts", "ModelSource", "Pass"]
