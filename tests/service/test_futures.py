"""How long results stay: the clock is a number the test sets."""

import gc
import weakref
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
    table.add("a", done())
    assert table.get("a").result() == "result"
    assert table.get("a").result() == "result"


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


class Data:
    """Stands for megabytes."""


@pytest.mark.parametrize("settles", [Future.cancel, lambda future: future.set_result("result")])
def test_what_has_settled_keeps_nothing_of_what_it_was_made_of(table, settles):
    data, future = Data(), Future()
    future.add_done_callback(lambda _, data=data: None)
    table.add("a", future, waits_for=lambda data=data: None)
    seen = weakref.ref(data)
    del data
    assert seen() is not None
    settles(future)
    del future
    gc.collect()
    assert seen() is None
    assert table.get("a").done()


def failing(data, gone):
    """Raises with a frame that holds the data, and with one more that holds them behind it."""
    seen = weakref.ref(data)
    gone.append(seen)
    try:
        raise KeyError("the loss's own")
    except KeyError as error:
        raise ValueError("no") from error


def test_an_error_holds_no_frames_and_says_in_a_note_where_it_came_from(table):
    table.add("a", future := Future())
    gone = []
    try:
        failing(Data(), gone)
    except ValueError as error:
        future.set_exception(error)
    del future
    gc.collect()
    assert [seen() for seen in gone] == [None]
    error = table.get("a").exception()
    assert (str(error), str(error.__cause__)) == ("no", '"the loss\'s own"')
    [note] = error.__notes__
    assert "in failing" in note
    assert "the loss's own" in note


def test_a_cancelled_request_stays_cancelled(table):
    table.add("a", future := Future(), cancellable=True)
    table.cancel("a")
    assert future.cancelled()
    assert table.get("a").cancelled()
    table.drop(["a"])
    assert not table.knows("a")


def test_a_request_that_is_added_again_is_kept_like_a_new_one(table, clock):
    table.add("a", future := Future())
    clock.now = UNFETCHED
    table.add("a", future)
    future.set_result("result")
    clock.now += UNFETCHED - 1
    assert table.get("a").result() == "result"
