"""One model's order: numbers in any order, repeats, refusals and gaps. Time is a number the test gives."""

import pytest

from weaver.domain import AdamParams, ForwardBackward, OptimStep, SaveState
from weaver.engine.fingerprint import differences, fingerprint, parts_of
from weaver.engine.lane import REMEMBERED, Lane
from weaver.errors import InvalidInput, SequenceRefused

GAP = 30.0
WRONG = InvalidInput("data[3] is wrong")


@pytest.fixture
def lane():
    """A lane whose next number is 1: the creation of its model is done."""
    made = Lane("s:train:0", GAP)
    accept(made, 0)
    made.head(0.0)
    made.pop()
    return made


def step(learning_rate):
    return OptimStep(AdamParams(learning_rate=learning_rate))


def accept(lane, seq_id, operation=None):
    """Each number has an operation of its own unless the test gives one."""
    operation = operation or step(float(seq_id))
    return lane.accept(seq_id, operation, fingerprint(**parts_of(operation)))


def taken(lane, now=0.0):
    """The numbers of what may run, taken."""
    numbers = []
    while work := lane.head(now):
        assert lane.pop() is work
        numbers.append(work.seq_id)
    return numbers


def test_what_arrives_backwards_is_given_out_forwards(lane):
    for seq_id in (3, 2):
        accept(lane, seq_id)
    assert taken(lane) == []
    accept(lane, 1)
    assert taken(lane) == [1, 2, 3]
    assert lane.empty


def test_an_exact_repeat_is_the_first_request(lane):
    first = accept(lane, 1)
    assert accept(lane, 1) == first.request_id
    assert taken(lane) == [1]
    assert accept(lane, 1) == first.request_id
    assert taken(lane) == []


def test_an_accepted_operation_cannot_be_cancelled(lane):
    assert not accept(lane, 1).future.cancel()


def test_a_number_taken_by_another_request_is_refused_with_the_difference(lane):
    accept(lane, 1, step(0.1))
    with pytest.raises(
        SequenceRefused, match=r"seq_id 1 of model s:train:0 .* this OptimStep has another params; a retry"
    ):
        accept(lane, 1, step(0.2))
    with pytest.raises(SequenceRefused, match="that was OptimStep, this is SaveState"):
        accept(lane, 1, SaveState("a"))
    [work] = [lane.head(0.0)]
    assert work.operation == step(0.1)


def test_every_part_that_differs_is_named():
    first = fingerprint(**parts_of(SaveState("a", ttl_seconds=5000)))
    second = fingerprint(**parts_of(SaveState("b", ttl_seconds=6000)))
    assert differences(first, second) == "name and ttl_seconds"
    assert differences(first, first) == ""


def test_a_refused_number_is_not_waited_for(lane):
    assert lane.refuse(1, WRONG) is None
    accept(lane, 2)
    assert taken(lane) == [2]
    assert lane.refuse(3, WRONG) is None
    accept(lane, 4)
    assert taken(lane) == [4]


def test_a_refused_number_stays_refused(lane):
    lane.refuse(1, WRONG)
    for moment in ("before its turn", "after its turn"):
        with pytest.raises(SequenceRefused, match=r"seq_id 1 .* was refused before, or given up after 30 s"):
            accept(lane, 1)
        if moment == "before its turn":
            accept(lane, 2)
            assert taken(lane) == [2]


def test_refusing_a_bad_retry_does_not_take_the_first_request_away(lane):
    accept(lane, 1)
    lane.refuse(1, WRONG)
    assert taken(lane) == [1]
    lane.refuse(1, WRONG)
    accept(lane, 2)
    assert taken(lane) == [2]


def test_a_number_that_never_arrives_is_given_up_after_the_gap(lane):
    accept(lane, 2)
    assert lane.deadline() is None
    assert taken(lane, now=100.0) == []
    assert lane.deadline() == 100.0 + GAP
    assert taken(lane, now=129.9) == []
    assert taken(lane, now=130.0) == [2]
    assert lane.deadline() is None


def test_a_number_that_was_given_up_is_refused_when_it_comes_and_the_next_one_is_told(lane):
    accept(lane, 2)
    lane.head(0.0)
    assert taken(lane, now=GAP) == [2]
    with pytest.raises(
        SequenceRefused, match=r"seq_id 1 .* comes too late: .* given up after 30 s; use a new number \(next"
    ):
        accept(lane, 1)
    accept(lane, 3)
    assert taken(lane, now=GAP) == [3]


def test_the_gap_is_counted_from_when_the_lane_began_to_wait_for_that_number(lane):
    accept(lane, 2)
    accept(lane, 4)
    assert taken(lane, now=0.0) == []
    assert taken(lane, now=GAP) == [2]
    assert taken(lane, now=GAP + 29.0) == []
    assert taken(lane, now=GAP + 30.0) == [4]


def test_a_number_that_comes_in_time_ends_the_wait(lane):
    accept(lane, 2)
    lane.head(0.0)
    accept(lane, 1)
    assert taken(lane, now=29.0) == [1, 2]
    assert lane.deadline() is None


def test_many_missing_numbers_cost_one_gap(lane):
    """A client that gave up in a custom loss has reserved numbers it never sends."""
    accept(lane, 1000)
    lane.head(0.0)
    assert taken(lane, now=GAP) == [1000]


def a_pass(lane, seq_id):
    return accept(lane, seq_id, ForwardBackward((), f"loss {seq_id}"))


def assert_fails(future, message="another part of the same call was refused: .*wrong"):
    assert future.done()
    with pytest.raises(InvalidInput, match=message):
        future.result()


def test_a_later_part_that_is_refused_is_acknowledged_and_takes_its_call_along(lane):
    """Tinker's SDK sends the first part last, and nothing ever again when a later one was refused at once."""
    third = a_pass(lane, 3)
    refusal = lane.refuse(2, WRONG)
    assert_fails(refusal.future, "^data.3. is wrong$")
    assert lane.refuse(2, WRONG) == refusal.request_id
    assert not third.future.done()
    first = a_pass(lane, 1)
    assert_fails(first.future)
    assert_fails(third.future)
    a_pass(lane, 4)
    assert taken(lane) == [4]
    assert a_pass(lane, 1) == first.request_id


def test_a_first_part_that_is_refused_takes_the_later_ones_along(lane):
    later = [a_pass(lane, 3), a_pass(lane, 2)]
    assert lane.refuse(1, WRONG) is None
    for work in later:
        assert_fails(work.future)
    a_pass(lane, 4)
    assert taken(lane) == [4]


def test_what_came_before_a_refused_call_is_not_touched_by_it(lane):
    before = [a_pass(lane, 1), a_pass(lane, 2)]
    later = a_pass(lane, 4)
    assert lane.refuse(3, WRONG) is None
    assert_fails(later.future)
    assert taken(lane) == [1, 2]
    assert not any(work.future.done() for work in before)


def test_a_whole_call_without_a_fault_after_a_refused_one_runs(lane):
    lane.refuse(2, WRONG)
    a_pass(lane, 1)
    for seq_id in (4, 5, 3):
        a_pass(lane, seq_id)
    assert taken(lane) == [3, 4, 5]


def test_a_call_whose_first_part_never_comes_is_given_up_whole_when_another_was_refused(lane):
    later = a_pass(lane, 3)
    lane.refuse(2, WRONG)
    assert taken(lane, now=0.0) == []
    assert taken(lane, now=GAP) == []
    assert_fails(later.future)
    with pytest.raises(SequenceRefused, match="given up"):
        a_pass(lane, 1)
    a_pass(lane, 4)
    assert taken(lane, now=GAP) == [4]


def test_only_passes_are_parts_of_a_call(lane):
    """A client that is not the SDK may have sent a step ahead of its pass."""
    step_work = accept(lane, 2)
    lane.refuse(1, WRONG)
    assert taken(lane) == [2]
    assert not step_work.future.done()


def test_a_number_that_was_refused_as_a_part_is_taken(lane):
    lane.refuse(2, WRONG)
    with pytest.raises(SequenceRefused, match=r"seq_id 2 .* that was refused, this is ForwardBackward"):
        a_pass(lane, 2)


def test_a_lane_remembers_which_passes_came_as_one_call(lane):
    for seq_id in (3, 2, 1, 4, 6, 5):
        a_pass(lane, seq_id)
    assert [lane.parts(seq_id) for seq_id in range(1, 7)] == [(1, 2, 3)] * 3 + [(4,)] + [(5, 6)] * 2
    assert taken(lane) == [1, 2, 3, 4, 5, 6]


def test_a_step_sent_ahead_parts_the_passes_around_it(lane):
    accept(lane, 2)
    a_pass(lane, 3)
    a_pass(lane, 1)
    assert [lane.parts(seq_id) for seq_id in (1, 3)] == [(1,), (3,)]


def test_a_part_whose_first_never_came_has_no_call(lane):
    a_pass(lane, 3)
    a_pass(lane, 2)
    assert taken(lane, now=0.0) == []
    assert lane.head(GAP).seq_id == 2
    assert [lane.parts(seq_id) for seq_id in (2, 3)] == [(), ()]


def test_an_empty_lane_waits_for_nothing(lane):
    assert taken(lane, now=1e9) == []
    assert lane.deadline() is None
    accept(lane, 1)
    assert taken(lane, now=1e9) == [1]


def test_draining_gives_all_that_waits_in_order(lane):
    for seq_id in (5, 3, 4):
        accept(lane, seq_id)
    assert [work.seq_id for work in lane.drain()] == [3, 4, 5]
    assert lane.empty


def test_old_repeats_are_forgotten_so_that_a_long_run_does_not_fill_the_memory(lane):
    for seq_id in range(1, REMEMBERED + 2):
        accept(lane, seq_id)
        taken(lane)
    assert isinstance(accept(lane, REMEMBERED + 1), str)
    with pytest.raises(SequenceRefused, match="comes too late"):
        accept(lane, 0)
