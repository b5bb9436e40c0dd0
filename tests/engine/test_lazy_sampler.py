"""A sampler that is opened on first use: who waits, for what, and who hears of newer weights."""

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from weaver.domain import AdapterRef, SampleRequest, SamplingParams
from weaver.engine import LazySampler
from weaver.errors import InvalidInput, Stopped
from weaver.kept import KeptFolders
from weaver.sampler import SampleFuture

REQUEST = SampleRequest(np.array([1, 2]), 1, SamplingParams(3))
NEWER = AdapterRef("a", Path("does-not-exist"))


class Slow:
    """A sampler that never draws, and takes as long to open as the test says."""

    def __init__(self):
        self.may_open = threading.Event()
        self.futures, self.published = [], []

    def open(self):
        assert self.may_open.wait(60)
        return self

    def sample(self, request):
        self.futures.append(SampleFuture(lambda: "all seats are taken"))
        return self.futures[-1]

    def publish(self, model_id, version, adapter):
        self.published.append((model_id, version, adapter))

    def forget(self, adapter_id):
        """Nothing is kept."""

    def close(self):
        """Nothing runs."""


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def lazy(slow):
    sampler = LazySampler(slow.open, KeptFolders(Path()))
    yield sampler
    slow.may_open.set()
    sampler.close()


def open_now(slow, lazy):
    """Let the sampler open; returns when those who waited have been passed on."""
    passed_on = threading.Event()
    lazy._opening.add_done_callback(lambda _: passed_on.set())  # called after those that were added before it
    slow.may_open.set()
    assert passed_on.wait(60)


def test_a_request_says_that_the_model_is_being_loaded_and_then_what_the_sampler_says(slow, lazy):
    future = lazy.sample(REQUEST)
    assert future.waits_for() == "the base model is being loaded for sampling"
    open_now(slow, lazy)
    assert future.waits_for() == "all seats are taken"
    assert lazy.sample(REQUEST).waits_for() == "all seats are taken"
    slow.futures[0].begun = True
    assert future.waits_for() is None


def test_a_request_that_is_cancelled_while_the_model_loads_is_never_passed_on(slow, lazy):
    cancelled, kept = lazy.sample(REQUEST), lazy.sample(REQUEST)
    assert cancelled.cancel()
    open_now(slow, lazy)
    assert len(slow.futures) == 1
    assert kept.cancel()
    assert slow.futures[0].cancelled()


def test_nobody_is_told_of_newer_weights_before_anything_was_sampled(slow, lazy):
    lazy.publish("m", 1, NEWER)
    lazy.sample(REQUEST)
    open_now(slow, lazy)
    assert slow.published == []


def test_newer_weights_that_are_not_what_was_written_are_not_passed_on(slow, lazy):
    lazy.sample(REQUEST)
    open_now(slow, lazy)
    lazy.publish("m", 1, NEWER)
    assert lazy._adapters["a"].exception(timeout=60) is not None
    assert slow.published == []


def test_what_fails_to_open_fails_those_who_wait_and_is_tried_again(slow):
    tries = iter([InvalidInput("no such model"), None])

    def opened():
        if error := next(tries):
            raise error
        return slow.open()

    lazy = LazySampler(opened, KeptFolders(Path()))
    with pytest.raises(InvalidInput, match="no such model"):
        lazy.sample(REQUEST).result(timeout=60)
    lazy.sample(REQUEST)
    open_now(slow, lazy)
    assert len(slow.futures) == 1
    lazy.close()
    with pytest.raises(Stopped):
        lazy.sample(REQUEST)


def test_a_sampler_that_raises_fails_the_request_that_waited(slow, lazy):
    waiting = lazy.sample(REQUEST)
    slow.sample = lambda request: 1 / 0
    open_now(slow, lazy)
    with pytest.raises(ZeroDivisionError):
        waiting.result(60)


def test_what_waited_for_the_model_is_not_kept_once_it_was_passed_on(slow, lazy):
    request = SampleRequest(np.array([1, 2]), 1, SamplingParams(3))
    seen, future = weakref.ref(request.prompt_n), lazy.sample(request)
    open_now(slow, lazy)
    slow.futures.pop().set_result(None)
    assert future.result(60) is None
    del request, future
    for thread in threading.enumerate():
        if thread.name == "weaver-open-sampler":
            thread.join(60)
    gc.collect()
    assert seen() is None
