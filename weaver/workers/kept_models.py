"""What a server keeps of the models in other processes, so that nothing of them is lost with those."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from weaver.backend import Backend, Pass
from weaver.domain import LoraSpec, ModelState, OptimParams
from weaver.errors import ServerError, WeaverError

PATIENCE: Final = 10.0
"""A copy of a model's state is taken when what has run since the last one took this many times as long as a copy takes:
copies cost at most a tenth of the time, and to bring a model back takes at most about ten copies' time."""

Step = OptimParams
Since = list[tuple[Pass, ...] | Step]


@dataclass(slots=True, eq=False)
class KeptModel:
    """One model: its state at some time (None: as it was created), and what has run on it since."""

    lora: LoraSpec
    state: ModelState | None = None
    since: Since = field(default_factory=list)
    seconds: float = 0.0
    copy_seconds: float = 0.0

    def ran(self, passes: tuple[Pass, ...], seconds: float) -> None:
        self.since.append(passes)
        self.seconds += seconds

    def stepped(self, params: OptimParams, seconds: float) -> None:
        self.since.append(params)
        self.seconds += seconds

    @property
    def wants_copy(self) -> bool:
        return self.seconds >= PATIENCE * self.copy_seconds

    def copied(self, state: ModelState, seconds: float | None = None) -> None:
        """`state` has everything up to the last step; the gradients accumulated since are not part of it."""
        steps = [place for place, one in enumerate(self.since) if not isinstance(one, tuple)]
        self.since = self.since[steps[-1] + 1 :] if steps else self.since
        self.state, self.seconds = state, 0.0
        self.copy_seconds = self.copy_seconds if seconds is None else seconds

    def replaced(self, state: ModelState) -> None:
        self.state, self.since, self.seconds = state, [], 0.0

    def bring_back(self, model_id: str, backend: Backend) -> None:
        """Make the model in a backend that does not have it. Raises what the backend raises."""
        backend.create_model(model_id, self.lora)
        if self.state is not None:
            backend.import_state(model_id, self.state)
        for one in self.since:
            match one:
                case tuple():
                    _check(model_id, backend.forward_backward(one))
                case _:
                    backend.optim_step(model_id, one)


def _check(model_id: str, outcomes: Sequence[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, WeaverError):
            raise ServerError(f"a pass of model {model_id} that had succeeded failed when it ran again: {outcome}")
