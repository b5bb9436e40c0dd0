"""The contract of a sampler, and the record a sampler plugin yields.

A sampler draws tokens from one base model and from immutable adapters on it. It runs on threads or processes of its
own: sampling never waits for training. What arrives has been checked at the door.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from weaver.types import ModelSource, SampleRequest, SampleResult


class Sampler(Protocol):
    """One base model and the snapshots that are sampled from it. Every method may be called from any thread."""

    def sample(self, request: SampleRequest) -> Future[SampleResult]:
        """Queue a request at once. Cancelling the future stops its generation; a failure arrives as its exception.

        An adapter is loaded from its folder when first used and kept or dropped as the sampler sees fit.
        """

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
