"""How long results stay: the clock is a number the test sets."""

from concurrent.futures import Future

import pytest

from weaver.errors import Forgotten
from weaver.service.futures import SWEEP_SECONDS, FutureTable

RESULT, UNFETCHED = 600.0, 86_400.0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def table(clock):
    return FutureTable(RESULT, UNFETCHED, clock)


def done(value="result"):
    future = Future()
    future.set_result(value)
    return future


def test_a_result_can_be_fetched_as_often_as_one_likes(table):
    table.add("a", future := done())
    assert table.get("a") is future
    assert table.get("a") is future


def test_a_request_nobody_made_is_told_so(table):
    with pytest.raises(Forgotten, match="there is no request 'b': its result was dropped, or it is not of this server"):
        table.get("b")


def test_a_fetched_result_is_dropped_after_the_grace_period(table, clock):
    table.add("a", done())
    clock.now = 1000.0
    table.get("a")
    clock.now += RESULT
    table.get("a")
    clock.now += RESULT + SWEEP_SECONDS
    with pytest.raises(Forgotten):
        table.get("a")


def test_each_fetch_begins_the_grace_period_again(table, clock):
    table.add("a", done())
    for _ in range(10):
        clock.now += RESULT - 1
        table.get("a")


def test_a_result_that_nobody_fetches_stays_much_longer(table, clock):
    table.add("a", done())
    table.add("b", done())
    clock.now = UNFETCHED
    assert table.get("a").result() == "result"
    clock.now = UNFETCHED + SWEEP_SECONDS
    with pytest.raises(Forgotten):
        table.get("b")
    assert table.get("a").result() == "result"


def test_what_still_runs_is_never_dropped(table, clock):
    table.add("a", running := Future())
    table.get("a")
    clock.now = 100 * UNFETCHED
    assert table.get("a") is running
    clock.now += 100 * UNFETCHED
    table.add("b", done())
    assert table.get("a") is running


def test_a_failure_is_kept_like_a_result(table, clock):
    future = Future()
    future.set_exception(ValueError("no"))
    table.add("a", future)
    clock.now = UNFETCHED - 1
    assert isinstance(table.get("a").exception(), ValueError)


def test_adding_sweeps_too_so_that_a_client_that_fetches_nothing_cannot_fill_the_memory(table, clock):
    for number in range(100):
        table.add(f"old {number}", done())
    clock.now = UNFETCHED + SWEEP_SECONDS
    table.add("new", done())
    assert list(table._kept) == ["new"]
