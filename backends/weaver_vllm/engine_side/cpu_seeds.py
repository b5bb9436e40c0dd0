"""PATCH, of how vLLM draws with seeds on CPUs: a prompt that comes in pieces uses no numbers of its seed.

vLLM 0.32 draws a token for every piece and turns the seed's generator back, which those of CPUs cannot do: it ends the
engine. Here such rows draw from no seed, and nothing is turned back.
"""

from typing import Any

import numpy as np


def spare_seeds(runner: Any) -> None:
    """Once the model is loaded."""
    draw, settle = runner.sampler.forward, runner._bookkeeping_sync

    def forward(logits: Any, sampling_metadata: Any, *arguments: Any, **named: Any) -> Any:
        generators = sampling_metadata.generators
        unused = set(np.flatnonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs]).tolist())
        sampling_metadata.generators = {row: each for row, each in generators.items() if row not in unused}
        try:
            return draw(logits, sampling_metadata, *arguments, **named)
        finally:
            sampling_metadata.generators = generators

    def bookkeeping(*arguments: Any, **named: Any) -> Any:
        batch = runner.input_batch
        generators, batch.generators = batch.generators, {}
        try:
            return settle(*arguments, **named)
        finally:
            batch.generators = generators

    runner.sampler.forward, runner._bookkeeping_sync = forward, bookkeeping
