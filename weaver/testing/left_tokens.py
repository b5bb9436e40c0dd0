"""Checks of what tokens are drawn among: what min_tokens keeps back, and what a sampling mask tells.

Shapes: V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from weaver.domain import SampledSequence, SampleRequest, StopReason
from weaver.testing.reference import VOCABULARY
from weaver.testing.sampler_bench import DRAWN, GREEDY, Bench, drawn_or_refused

HALF: Final = tuple(range(1, VOCABULARY, 2))
"""Half of the vocabulary stops, the model's own end token too: what is drawn freely ends soon."""
EARLY: Final = 7


def stop_tokens_wait_for_min_tokens_or_it_is_refused(bench: Bench) -> None:
    """They have no probability before; afterwards they end the sequence. What stops nothing is not kept back."""
    waiting: Mapping[str, Any] = {"max_tokens": 20, "min_tokens": EARLY, "stop_token_ids": HALF}
    for params in (GREEDY, DRAWN, replace(DRAWN, temperature=0.8, top_k=20, top_p=0.9)):
        request = bench.ask(14, replace(params, **waiting), samples=4)
        result = drawn_or_refused(bench, request, "min_tokens")
        if result is None:
            continue
        for sequence in result.sequences:
            *before, last = sequence.tokens.tolist()
            ended = sequence.stop_reason is StopReason.STOP
            assert {*before[:EARLY]}.isdisjoint(HALF), f"{before[:EARLY]}: of the first {EARLY} tokens one stops"
            assert len(before) >= EARLY, f"a sequence ends with token {len(before) + 1}; min_tokens is {EARLY}"
            assert {*before}.isdisjoint(HALF), "it goes on after a stop token"
            assert ended == (last in HALF), f"it says {sequence.stop_reason} of one that ends with {last}"
        bench.check_logprobs(request, result, bench.base)
    request = bench.ask(14, replace(DRAWN, min_tokens=12, stop_token_ids=(2,)), samples=4)
    result = drawn_or_refused(bench, request, "min_tokens")
    if result is not None:
        bench.check_logprobs(request, result, bench.base)


def masks_are_what_tokens_were_drawn_among_or_refused(bench: Bench) -> None:
    """Rows in ascending order, with the drawn token; empty where nothing was left out."""
    changes: Sequence[Mapping[str, Any]] = (
        {"top_k": 5},
        {"top_p": 0.7},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8},
        {"min_tokens": EARLY, "stop_token_ids": HALF},
        {},
        {"temperature": 0.0, "top_k": 5, "top_p": 0.7},
    )
    for changed in changes:
        request = bench.ask(15, replace(DRAWN, **changed), samples=3, sampling_mask=True)
        result = drawn_or_refused(bench, request, "return_sampling_mask")
        if result is not None:
            bench.check_logprobs(request, result, bench.base)
            for sequence in result.sequences:
                _check_mask(bench, request, sequence)
    [plain] = bench.draw(bench.ask(15, replace(DRAWN, top_k=5)))
    assert plain.sequences[0].sampling_mask is None, "a mask comes with a request that did not ask for one"


def _check_mask(bench: Bench, request: SampleRequest, sequence: SampledSequence) -> None:
    """By the model's own logits. A token whose place is nearer to top_p than the tolerance may be in or out."""
    assert sequence.sampling_mask is not None, "return_sampling_mask was asked for and silently left out"
    assert len(sequence.sampling_mask) == len(sequence.tokens), "a mask has not one row for each token"
    params, tokens = request.params, sequence.tokens
    fewer = replace(params, top_p=max(params.top_p - bench.tolerance, 0.0))
    more = replace(params, top_p=min(params.top_p + bench.tolerance, 1.0))
    least, most = (bench.base.drawn_among(request.prompt_n, tokens, each) for each in (fewer, more))
    for place, row in enumerate(sequence.sampling_mask.lists()):
        told = row or list(range(VOCABULARY))
        known = f"{params}: token {place} was drawn among {told}"
        assert told == sorted(set(told)), f"{known}, which does not ascend"
        assert tokens[place] in told, f"{known}, and is {tokens[place]}"
        missing, wrong = set(np.flatnonzero(least[place])) - {*told}, {*told} - set(np.flatnonzero(most[place]))
        assert not missing, f"{known}, which lacks {sorted(missing)}"
        assert not wrong, f"{known}, which has {sorted(wrong)}, that were left out"
        assert len(row) < VOCABULARY, "where the whole vocabulary was left a row is empty"
