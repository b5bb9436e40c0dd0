"""The contract of a sampler, and the record a sampler plugin yields.

A sampler draws tokens from one base model and from immutable adapters on it. It runs on threads or processes of its
own: sampling never waits for training. What arrives has been checked at the door.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from weaver.domain import AdapterRef, ModelSource, OptionValue, SampleRequest, SampleResult
from weaver.options import Option, effective_options


class SampleFuture(Future[SampleResult]):
    """A sample on its way. Whoever draws it sets `begun`; until then `reason` says what keeps it waiting."""

    def __init__(self, reason: Callable[[], str | None] = lambda: None) -> None:
        super().__init__()
        self.begun = False
        self._reason = reason

    def waits_for(self) -> str | None:
        """What keeps the sample from being drawn, in plain words; None when it is drawn, or nothing is known."""
        return None if self.begun or self.done() else self._reason()

    def follow(self, inner: "SampleFuture") -> None:
        """The sample is in other hands now: what these say holds."""
        self._reason = inner.waits_for


class Sampler(Protocol):
    """One base model and the snapshots that are sampled from it. Every method may be called from any thread."""

    def sample(self, request: SampleRequest) -> SampleFuture:
        """Queue a request at once. Cancelling the future stops its generation; a failure arrives as its exception.

        An adapter is loaded from its folder when first used and kept or dropped as the sampler sees fit.
        """

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        """Requests that follow the model, running ones too, use this adapter from their next token on, unless they
        already use a higher version. See `weaver.domain.Inflight`."""

    def forget(self, adapter_id: str) -> None:
        """The adapter will not be asked for again: free it, once running requests are done with it."""

    def close(self) -> None:
        """Stop; running requests fail with `Stopped`."""


@dataclass(frozen=True, slots=True)
class SamplerFactory:
    """What a sampler plugin yields. `open` imports its heavy packages inside, loads the model and may take minutes."""

    name: str
    open: Callable[[ModelSource], Sampler]
    description: str = ""
    options: tuple[Option, ...] = ()

    def effective_options(self, given: Mapping[str, OptionValue]) -> Mapping[str, OptionValue]:
        """`given` checked against what is declared, with defaults filled in. Raises InvalidInput naming the option."""
        return effective_options("sampler", self.name, self.options, given)
