"""The contract of a training backend, and the record a backend plugin yields.

A backend holds one base model and any number of adapters ("models") on it. One thread owns it: no method is called
while another runs, so it needs no locks. What arrives has been checked at the door; a backend trusts it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weaver.domain import (
    Adapter,
    Datum,
    ForwardBackwardResult,
    LoraSpec,
    ModelFacts,
    ModelSource,
    ModelState,
    OptimParams,
    OptionValue,
)
from weaver.errors import InvalidInput, WeaverError
from weaver.loss import Loss
from weaver.options import Option, effective_options


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One model's forward (and backward) over some data with one loss. `config` is complete: defaults are filled in.

    A loss with `batch` needs the logprobs of all `data` before it can be evaluated; `weaver.evaluation` calls both.

    All logprobs, those of the result too, and all entropies are of softmax(logits / `temperature`): over the whole
    vocabulary, and where a datum has a `sampling_mask`, over the tokens of the target's row, if it names any.
    """

    model_id: str
    data: Sequence[Datum]
    loss: Loss
    config: Mapping[str, Any]
    backward: bool

    @property
    def temperature(self) -> float:
        """What logits are divided by; above 0, and 1 unless the loss reads a temperature."""
        return self.loss.temperature(self.config)

    @property
    def wants_entropy(self) -> bool:
        """Whether the loss is to be given the entropy of every token's distribution, and has a gradient by it."""
        return self.loss.wants_entropy(self.config)


class Backend(Protocol):
    """One base model, frozen, and the adapters being trained on it."""

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        """Add an adapter. Its initial weights follow from `lora` alone, whose seed is set; B is zero."""

    def drop_model(self, model_id: str) -> None:
        """Free an adapter, its gradients and its optimizer state. One that could not be created is not there."""

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


def cannot_merge(source: ModelSource, adapter: Adapter, folder: Path) -> None:
    """For backends whose models are no Hugging Face folders."""
    raise InvalidInput(f"this backend cannot merge an adapter into {source.name!r}")


BackendOption = Option
"""The name by which backends know it."""


@dataclass(frozen=True, slots=True)
class BackendFactory:
    """What a backend plugin yields. `describe` reads a model's configuration; `open` loads it and may take minutes;
    `merge` writes the model with an adapter added to its weights into an empty folder, for others to load.

    All import their heavy packages inside, so that listing backends imports none.

    A backend with `processes` lives in processes of its own, as many as that says for a source's options. Weaver starts
    them; in each, `open` is called and then every method of the contract, with equal arguments in the same order. What
    the first returns counts; of passes, all must say which failed. They find RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT in the environment, as from torchrun. One that ends takes the others with it: all start again, with
    every adapter as it was.

    `sampling_masks` says that the backend heeds those of data; without it no datum that has one gets to the backend.
    """

    name: str
    describe: Callable[[ModelSource], ModelFacts]
    open: Callable[[ModelSource], Backend]
    description: str = ""
    merge: Callable[[ModelSource, Adapter, Path], None] = cannot_merge
    options: tuple[BackendOption, ...] = ()
    processes: Callable[[Mapping[str, OptionValue]], int] | None = None
    sampling_masks: bool = False

    def effective_options(self, given: Mapping[str, OptionValue]) -> Mapping[str, OptionValue]:
        """`given` checked against what is declared, with defaults filled in. Raises InvalidInput naming the option."""
        return effective_options("backend", self.name, self.options, given)


__all__ = ["Backend", "BackendFactory", "BackendOption", "ModelFacts", "ModelSource", "Pass"]
