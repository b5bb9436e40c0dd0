"""How much of what was drawn waits to be trained on."""

from pathlib import Path

import numpy as np
import pytest

from weaver.domain import AdapterRef, SampledSequence, SampleRequest, SampleResult, SamplingParams, StopReason
from weaver.engine import mismatch
from weaver.engine.mismatch import MismatchWatch

ADAPTER = AdapterRef("snapshot", Path("nowhere"))


@pytest.fixture
def watch():
    watch = MismatchWatch(share=1, warning=1)
    watch.saved("model", ADAPTER.adapter_id)
    return watch


def draw(watch, first, length):
    tokens = np.arange(first, first + length)
    sequence = SampledSequence(tokens, np.zeros(length, np.float32), StopReason.LENGTH)
    request = SampleRequest(np.array([first]), 1, SamplingParams(length), ADAPTER)
    watch.sampled(request, SampleResult((sequence,)))


def kept(watch):
    return [len(drawn.logprobs_D) for drawn in watch._drawn.values()], watch._drawn_tokens


def test_long_sequences_are_bounded_by_their_tokens_the_oldest_go(watch, monkeypatch):
    monkeypatch.setattr(mismatch, "KEPT_TOKENS", 100)
    for first, length in ((1, 30), (2, 40), (3, 25), (3, 25), (4, 20)):
        draw(watch, first, length)
    assert kept(watch) == ([40, 25, 20], 85)


def test_short_ones_by_their_number(watch, monkeypatch):
    monkeypatch.setattr(mismatch, "KEPT", 2)
    for first in (1, 2, 3):
        draw(watch, first, 10)
    assert kept(watch) == ([10, 10], 20)


def test_an_update_lets_go_of_all(watch):
    draw(watch, 1, 30)
    watch.changed("model")
    assert kept(watch) == ([], 0)
