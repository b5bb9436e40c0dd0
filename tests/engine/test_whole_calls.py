"""A loss that sees the batch gets all parts of a call, or the call fails: the engine, one step at a time."""

import numpy as np
import pytest

from tests.engine.test_engine import BASE, GAP, Bench, Recording
from weaver.backend import ModelSource
from weaver.domain import Datum, ForwardBackward, ForwardBackwardResult
from weaver.engine import Engine
from weaver.engine.executor import Executor
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import InvalidInput, LossFailed
from weaver.kept import KeptFolders
from weaver.loss import Loss

LOSSES = {"whole": Loss("whole", lambda *_: None, batch=True), "each": Loss("each", lambda *_: None)}


class Names:
    def loss(self, name):
        return LOSSES[name]


class Counting(Recording):
    """Tells the size of each pass in its metrics; `fails` makes all fail."""

    fails = False

    def forward_backward(self, passes):
        self.calls.append(tuple(len(one.data) for one in passes))
        if self.fails:
            return [LossFailed("no")] * len(passes)
        return [
            ForwardBackwardResult(
                tuple(datum.tokens_T.astype(np.float32) for datum in one.data),
                {"loss:sum": float(len(one.data)), "size:mean": float(len(one.data)), "size:max": 7.0},
                tuple({"token": datum.tokens_T.astype(np.float32)} for datum in one.data),
            )
            for one in passes
        ]


class WholeBench(Bench):
    def __init__(self, data_dir):
        super().__init__(data_dir)
        self.backend = Counting(ModelSource(BASE, "echo:vocab=10,context=64"))
        executor = Executor(
            self._open, Names(), self.store, KeptFolders(data_dir), lambda *_: None, MismatchWatch(0, 1)
        )
        self.engine = Engine(executor, GAP, self.clock)


@pytest.fixture
def bench(tmp_path):
    made = WholeBench(tmp_path)
    made.model("s:train:0")
    return made


def part(*tokens, loss="whole", **more):
    data = tuple(Datum(np.array([token]), {"target_tokens": np.array([token])}) for token in tokens)
    return ForwardBackward(data, loss, **more)


def send(bench, *operations):
    """The parts of one call as the SDK sends them: the first when all others are there. Their futures in order."""
    numbered = list(enumerate(operations, start=1))
    futures = {seq_id: bench.submit("s:train:0", seq_id, one) for seq_id, one in (*numbered[1:], numbered[0])}
    return [futures[seq_id] for seq_id, _ in numbered]


def test_all_parts_run_as_one_pass_and_each_gets_its_own_back(bench):
    futures = send(bench, part(1, 2), part(3), part(4, 5))
    bench.run()
    assert bench.backend.calls == [(5,)]
    results = [future.result() for future in futures]
    assert [[int(lp[0]) for lp in one.logprobs] for one in results] == [[1, 2], [3], [4, 5]]
    assert [[int(each["token"][0]) for each in one.outputs] for one in results] == [[1, 2], [3], [4, 5]]
    assert [one.metrics for one in results] == [
        {"loss:sum": 5.0, "size:mean": 5.0, "size:max": 7.0},
        {"loss:sum": 0.0, "size:mean": 5.0, "size:max": 7.0},
        {"loss:sum": 0.0, "size:mean": 5.0, "size:max": 7.0},
    ]


def test_parts_of_other_losses_stay_apart(bench):
    send(bench, part(1, 2, loss="each"), part(3, loss="each"))
    bench.run()
    assert bench.backend.calls == [(2, 1)]


def test_calls_that_came_one_by_one_stay_apart(bench):
    for seq_id in (1, 2, 3):
        bench.submit("s:train:0", seq_id, part(seq_id))
    bench.run()
    assert bench.backend.calls == [(1, 1, 1)]


def test_when_the_loss_fails_every_part_does(bench):
    bench.backend.fails = True
    futures = send(bench, part(1), part(2))
    bench.run()
    assert [type(future.exception()) for future in futures] == [LossFailed, LossFailed]


@pytest.mark.parametrize("other", [part(2, backward=False), part(2, config={"beta": 1.0}), part(2, loss="each")])
def test_parts_that_cannot_be_of_one_call_are_refused(bench, other):
    futures = send(bench, part(1), other)
    bench.run()
    for future in futures:
        with pytest.raises(InvalidInput, match="the loss 'whole' must see all data of a call, and this call's"):
            future.result(timeout=0)
    assert bench.backend.calls == []


def test_a_call_whose_first_part_never_comes_does_not_run_in_pieces(bench):
    futures = [bench.submit("s:train:0", seq_id, part(seq_id)) for seq_id in (2, 3)]
    bench.run()
    assert not any(future.done() for future in futures)
    bench.clock.now = GAP
    bench.run()
    for future in futures:
        with pytest.raises(InvalidInput, match="the first part of this call never arrived, and its loss must see all"):
            future.result(timeout=0)
    assert bench.backend.calls == []
    after = bench.submit("s:train:0", 4, part(4))
    bench.run()
    assert after.result().metrics["loss:sum"] == 1.0


def test_a_large_call_does_not_keep_other_models_from_their_turn(bench):
    bench.model("s:train:1")
    send(bench, *(part(*range(5)) for _ in range(4)))
    other = bench.submit("s:train:1", 1, part(1, loss="each"))
    bench.engine.step()
    assert other.done()
    assert bench.backend.calls == [(20, 1)]
