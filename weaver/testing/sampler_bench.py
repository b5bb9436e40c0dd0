"""A sampler under check: its tiny model and adapters, and what its results are compared with."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from weaver.backend import ModelSource
from weaver.domain import AdapterRef, IntArray, OptionValue, SampleRequest, SampleResult, SamplingParams
from weaver.errors import InvalidInput
from weaver.sampler import Sampler, SamplerFactory
from weaver.testing.reference import VOCABULARY, SamplingReference, write_adapter, write_model

SECONDS: Final = 120.0
"""How long any request may take."""
GREEDY: Final = SamplingParams(12, temperature=0.0, stop_token_ids=())
DRAWN: Final = SamplingParams(12, seed=7, stop_token_ids=())


@dataclass(frozen=True, slots=True)
class Bench:
    """A sampler with one tiny model and two adapters, and what its results are compared with."""

    sampler: Sampler
    base: SamplingReference
    adapters: Mapping[str, tuple[AdapterRef, SamplingReference]]
    tolerance: float

    def prompt(self, seed: int, length: int = 9) -> IntArray:
        return np.random.default_rng(seed).integers(2, VOCABULARY, length)

    def ask(self, seed: int = 0, params: SamplingParams = GREEDY, samples: int = 1, **more: Any) -> SampleRequest:
        return SampleRequest(self.prompt(seed), samples, params, **more)

    def draw(self, *requests: SampleRequest) -> list[SampleResult]:
        """Results of requests that are all there before any is waited for."""
        futures = [self.sampler.sample(request) for request in requests]
        return [future.result(SECONDS) for future in futures]

    def check_logprobs(self, request: SampleRequest, result: SampleResult, reference: SamplingReference) -> None:
        for sequence in result.sequences:
            expected = reference.drawn_logprobs(request.prompt_n, sequence.tokens, request.params)
            off = float(np.abs(sequence.logprobs - expected).max())
            assert off <= self.tolerance, f"logprobs of drawn tokens are off by {off:.1e} for {request.params}"


def token_lists(result: SampleResult) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in result.sequences]


def drawn_or_refused(bench: Bench, request: SampleRequest, field: str) -> SampleResult | None:
    """A sampler may lack this; then it must say so, by the name that clients know."""
    try:
        [result] = bench.draw(request)
    except InvalidInput as error:
        if field not in str(error):
            raise AssertionError(f"it refuses with {str(error)!r}, which does not name the field {field}") from error
        return None
    return result


def near(bench: Bench, found: Any, expected: Any, what: str) -> None:
    off = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    assert off <= bench.tolerance, f"{what} are off by {off:.1e}"


@contextmanager
def bench_of(
    factory: SamplerFactory,
    family: str,
    device: str,
    dtype: str,
    tolerance: float,
    options: Mapping[str, OptionValue] = MappingProxyType({}),
) -> Iterator[Bench]:
    """The sampler opened on a tiny model of the family; whoever asks for it closes it."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(family, Path(folder) / family)
        adapters = {}
        for name, rank in (("one", 4), ("other", 8)):
            written = write_adapter(model, Path(folder) / name, rank=rank, seed=rank)
            adapters[name] = (AdapterRef(name, written), SamplingReference(model, written))
        yield Bench(
            factory.open(ModelSource(f"tiny/{family}", str(model), device, dtype, factory.effective_options(options))),
            SamplingReference(model),
            adapters,
            tolerance,
        )
