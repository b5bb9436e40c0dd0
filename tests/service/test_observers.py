"""Observers hear of what settles, and cannot slow or break what they watch."""

import logging
import threading

import pytest

from weaver.backend import ModelSource
from weaver.config import Config
from weaver.domain import AdamParams, LoraSpec, OptimStep, SaveForSampler, SaveState
from weaver.operators import Observer, Settled
from weaver.registry import load_registry
from weaver.service import Service, observing
from weaver.service.observing import Observers


def settled(number):
    return Settled("OptimStep", "s:train:0", number, 0.0, 1.0, None, {})


class Heard(list):
    """What an observer was told, and a way to wait for so much of it."""

    def __init__(self):
        self.changed = threading.Condition()

    def __call__(self, one):
        with self.changed:
            self.append(one)
            self.changed.notify()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, 30)
        return self


def test_an_observer_hears_of_everything_in_order():
    heard = Heard()
    observers = Observers([Observer("heard", heard)])
    for number in range(100):
        observers.tell(settled(number))
    assert [one.seq_id for one in heard.wait_for(100)] == list(range(100))
    observers.close()


def test_what_waits_is_still_told_when_the_server_closes():
    heard, gate = Heard(), threading.Event()
    observers = Observers([Observer("slow", lambda one: (gate.wait(30), heard(one)))])
    for number in range(5):
        observers.tell(settled(number))
    gate.set()
    observers.close()
    assert len(heard) == 5


def test_one_that_falls_behind_misses_some_and_the_log_says_how_many(caplog):
    heard, gate, began = Heard(), threading.Event(), threading.Event()

    def slow(one):
        began.set()
        gate.wait(30)
        heard(one)

    observers = Observers([Observer("slow", slow, backlog=3)])
    observers.tell(settled(0))
    assert began.wait(30)
    for number in range(1, 11):
        observers.tell(settled(number))
    with caplog.at_level(logging.WARNING):
        gate.set()
        observers.close()
    assert [one.seq_id for one in heard] == [0, 1, 2, 3]
    assert "the observer 'slow' fell behind: it was not told of 7 operations" in caplog.text


def test_one_that_raises_is_told_of_the_next_and_others_hear_all(caplog):
    heard = Heard()

    def raising(one):
        raise KeyError(one.seq_id)

    observers = Observers([Observer("raising", raising), Observer("heard", heard)])
    with caplog.at_level(logging.ERROR):
        for number in range(2):
            observers.tell(settled(number))
        observers.close()
    assert len(heard) == 2
    assert caplog.text.count("the observer 'raising' failed on OptimStep of s:train:0") == 2


def test_one_that_never_comes_back_does_not_keep_the_server_from_closing(monkeypatch, caplog):
    monkeypatch.setattr(observing, "CLOSE_SECONDS", 0.05)
    gate = threading.Event()
    observers = Observers([Observer("stuck", lambda one: gate.wait(30))])
    observers.tell(settled(0))
    observers.tell(settled(1))
    observers.close()
    assert "the observer 'stuck' is left behind" in caplog.text
    gate.set()


@pytest.fixture
def watched(tmp_path):
    """A service whose observers are given; closed at the end."""
    made = []

    def make(*observers):
        registry = load_registry()
        registry.observers.update({one.name: one for one in observers})
        source = ModelSource("some/echo", "echo:vocab=10,context=64")
        config = Config(models=(source,), data_dir=tmp_path, backend="echo", sampler="echo")
        made.append(Service(config, registry))
        return made[-1]

    yield make
    for service in made:
        service.close()


def test_an_observer_hears_of_each_operation_of_a_model(watched):
    heard = Heard()
    service = watched(Observer("heard", heard))
    session = service.create_session(user_metadata={})
    model = service.create_model(session, 0, "some/echo", LoraSpec(rank=2)).model_id
    service.submit(model, 1, OptimStep(AdamParams()))
    service.submit(model, 2, SaveState("a"))
    service.submit(model, 3, SaveState("a"))
    service.submit(model, 4, SaveForSampler("b"))
    told = [(one.kind, one.seq_id, dict(one.quantities)) for one in heard.wait_for(5)]
    assert told == [
        ("CreateModel", 0, {}), ("OptimStep", 1, {}), ("SaveState", 2, {"checkpoint": 1}), ("SaveState", 3, {}),
        ("SaveForSampler", 4, {"checkpoint": 1}),
    ]  # fmt: skip
    assert {one.source for one in heard} == {model}
    assert [one.error is None for one in heard] == [True, True, True, False, True]
    assert "exists and never changes" in heard[3].error
    assert all(one.began <= one.ended for one in heard)


def test_a_stuck_observer_does_not_hold_up_training(watched, monkeypatch):
    monkeypatch.setattr(observing, "CLOSE_SECONDS", 0.05)
    gate = threading.Event()
    service = watched(Observer("stuck", lambda one: gate.wait(60), backlog=1))
    session = service.create_session(user_metadata={})
    model = service.create_model(session, 0, "some/echo", LoraSpec(rank=2)).model_id
    tickets = [service.submit(model, number, OptimStep(AdamParams())) for number in range(1, 20)]
    for ticket in tickets:
        assert service.future(ticket.request_id).result(timeout=30).metrics["grad_norm"] == 0
    gate.set()
