"""The engine, one step at a time: order within a model, packing across models, fairness, failures, and its end.

The backend is the echo plugin's, which writes down what it is asked. Numbers of other models and passes do not matter
here, so passes are cross-entropies over one token each.
"""

import threading

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.domain import (
    AdamParams,
    CreateFromState,
    CreateModel,
    Datum,
    ForwardBackward,
    LoadState,
    LoraSpec,
    ModelCreated,
    OptimStep,
    SaveForSampler,
    SaveState,
)
from weaver.engine import Engine
from weaver.engine import engine as engine_module
from weaver.engine.executor import Executor
from weaver.engine.fingerprint import fingerprint, parts_of
from weaver.engine.mismatch import MismatchWatch
from weaver.errors import Forgotten, InvalidInput, SequenceRefused, ServerError, Stopped, UnknownName
from weaver.kept import KeptFolders
from weaver.plugins.echo import EchoBackend
from weaver.registry import load_registry
from weaver.store import Store

GAP = 30.0
BASE = "some/echo"
SPEC = LoraSpec(rank=4, seed=1)
WRONG = InvalidInput("data is wrong")


class Recording(EchoBackend):
    """An echo backend that remembers its calls; `trouble` makes the next ones raise."""

    def __init__(self, source):
        super().__init__(source)
        self.calls = []
        self.trouble = None
        self.closed = False

    def create_model(self, model_id, lora):
        self._called("create", model_id)
        super().create_model(model_id, lora)

    def drop_model(self, model_id):
        self.calls.append(("drop", model_id))
        super().drop_model(model_id)

    def forward_backward(self, passes):
        self._called("passes", *(one.model_id for one in passes))
        return super().forward_backward(passes)

    def optim_step(self, model_id, params):
        self._called("step", model_id)
        return super().optim_step(model_id, params)

    def close(self):
        super().close()
        self.closed = True

    def _called(self, *call):
        self.calls.append(call)
        if self.trouble:
            raise self.trouble


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Bench:
    """An engine with what is around it, stepped by hand."""

    def __init__(self, data_dir):
        self.data_dir, self.store, self.clock = data_dir, Store("sqlite://"), Clock()
        self.backend = Recording(ModelSource(BASE, "echo:vocab=10,context=64"))
        self.opened = 0
        executor = Executor(
            self._open, load_registry(), self.store, KeptFolders(data_dir), lambda *_: None, MismatchWatch(0, 1)
        )
        self.engine = Engine(executor, GAP, self.clock)

    def _open(self):
        self.opened += 1
        return self.backend

    def submit(self, model_id, seq_id, operation):
        """The accepted work's future, or for a repeat the request id of the first."""
        accepted = self.engine.submit(model_id, seq_id, operation, fingerprint(**parts_of(operation)))
        return accepted if isinstance(accepted, str) else accepted.future

    def model(self, model_id):
        """A model that exists; its next number is 1."""
        future = self.submit(model_id, 0, CreateModel(BASE, SPEC))
        self.store.add_model(model_id, model_id.partition(":")[0], BASE, SPEC, {})
        self.engine.step()
        assert future.result() == ModelCreated(model_id)
        self.backend.calls.clear()
        return model_id

    def run(self):
        """Step until there is nothing to do."""
        while self.engine.step():
            pass


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def passes(tokens=1, token=1, weight=1.0, loss="cross_entropy"):
    inputs = {"target_tokens": np.full(tokens, token), "weights": np.full(tokens, weight, np.float32)}
    return ForwardBackward((Datum(np.zeros(tokens, np.int64), inputs),), loss)


STEP = OptimStep(AdamParams(learning_rate=0.5))


def test_the_backend_is_opened_when_it_is_first_needed(bench):
    assert not bench.engine.step()
    assert bench.opened == 0
    bench.model("a")
    bench.model("b")
    assert bench.opened == 1


def test_a_barrier_parts_the_passes_before_it_from_those_after_it(bench):
    bench.model("a")
    futures = [bench.submit("a", number, op) for number, op in enumerate([passes(), passes(), STEP, passes()], start=1)]
    bench.run()
    assert bench.backend.calls == [("passes", "a", "a"), ("step", "a"), ("passes", "a")]
    assert [sorted(future.result().metrics) for future in futures] == [
        ["loss:sum"],
        ["loss:sum"],
        ["grad_norm"],
        ["loss:sum"],
    ]


def test_operations_that_arrive_backwards_take_effect_forwards(bench):
    """A step before its pass would have a gradient of zero."""
    bench.model("a")
    step, passed = bench.submit("a", 2, STEP), bench.submit("a", 1, passes())
    bench.run()
    assert bench.backend.calls == [("passes", "a"), ("step", "a")]
    assert step.result().metrics["grad_norm"] > 0
    assert passed.result().metrics["loss:sum"] == pytest.approx(np.log(10), rel=1e-6)


def test_passes_of_many_models_run_in_one_call(bench):
    for model_id in "abc":
        bench.model(model_id)
    for model_id in "abc":
        bench.submit(model_id, 1, passes())
    bench.run()
    assert bench.backend.calls == [("passes", "a", "b", "c")]


def test_a_models_barrier_does_not_wait_for_another_models_passes(bench):
    bench.model("a")
    bench.model("b")
    bench.submit("a", 1, passes())
    step = bench.submit("b", 1, STEP)
    bench.engine.step()
    assert step.done()
    assert bench.backend.calls == [("step", "b")]


def test_one_step_takes_passes_up_to_its_budget(bench, monkeypatch):
    monkeypatch.setattr(engine_module, "STEP_TOKENS", 10)
    bench.model("a")
    for number in range(1, 6):
        bench.submit("a", number, passes(tokens=4))
    bench.run()
    assert bench.backend.calls == [("passes", "a", "a", "a"), ("passes", "a", "a")]


def test_a_model_with_large_passes_does_not_starve_another(bench, monkeypatch):
    """Each pass fills a step; `a` always has its next one ready, and still `b` has every second turn."""
    monkeypatch.setattr(engine_module, "STEP_TOKENS", 10)
    bench.model("a")
    bench.model("b")
    turns = []
    for number in range(1, 7):
        bench.submit("a", 2 * number - 1, passes(tokens=10))
        bench.submit("a", 2 * number, STEP)
        bench.submit("b", number, passes(tokens=10))
    for _ in range(6):
        bench.engine.step()
        while bench.backend.calls[-1][0] == "step":
            bench.engine.step()
        turns.append(bench.backend.calls[-1][1])
    assert turns in (list("ababab"), list("bababa"))


def test_three_models_with_large_passes_take_turns(bench, monkeypatch):
    monkeypatch.setattr(engine_module, "STEP_TOKENS", 10)
    for model_id in "abc":
        bench.model(model_id)
    for number in range(1, 4):
        for model_id in "abc":
            bench.submit(model_id, number, passes(tokens=10))
    bench.run()
    assert [call[1] for call in bench.backend.calls if call[0] == "passes"] == list("abcabcabc")


def test_a_retry_gets_the_same_request_and_runs_once(bench):
    bench.model("a")
    operation = passes()
    first = bench.engine.submit("a", 1, operation, fingerprint(**parts_of(operation)))
    assert bench.submit("a", 1, passes()) == first.request_id
    bench.run()
    assert bench.submit("a", 1, passes()) == first.request_id
    bench.run()
    assert bench.backend.calls == [("passes", "a")]


def test_a_create_that_is_repeated_makes_one_model(bench):
    bench.submit("a", 0, CreateModel(BASE, SPEC))
    assert isinstance(bench.submit("a", 0, CreateModel(BASE, SPEC)), str)
    bench.run()
    assert isinstance(bench.submit("a", 0, CreateModel(BASE, SPEC)), str)
    bench.run()
    assert bench.backend.calls == [("create", "a")]


def test_a_missing_number_is_given_up_when_the_clock_says_so(bench):
    bench.model("a")
    late = bench.submit("a", 2, passes())
    assert not bench.engine.step()
    bench.clock.now = GAP - 0.1
    assert not bench.engine.step()
    bench.clock.now = GAP
    assert bench.engine.step()
    assert late.done()
    with pytest.raises(SequenceRefused, match="comes too late"):
        bench.submit("a", 1, STEP)


def test_a_gap_in_one_model_holds_up_no_other(bench):
    bench.model("a")
    bench.model("b")
    bench.submit("a", 2, passes())
    other = bench.submit("b", 1, passes())
    bench.run()
    assert other.done()


def test_a_refused_number_is_skipped_at_once(bench):
    bench.model("a")
    bench.engine.refuse("a", 1, WRONG)
    later = bench.submit("a", 2, STEP)
    bench.run()
    assert later.done()
    assert bench.engine.refuse("nobody", 1, WRONG) is None


def test_no_part_of_a_call_runs_when_one_is_refused(bench):
    bench.model("a")
    parts = [bench.submit("a", 3, passes())]
    parts.append(bench.engine.refuse("a", 2, WRONG).future)
    parts.append(bench.submit("a", 1, passes()))
    step = bench.submit("a", 4, STEP)
    bench.run()
    for part in parts:
        with pytest.raises(InvalidInput, match="data is wrong"):
            part.result()
    assert step.result().metrics == {"grad_norm": 0.0}
    assert bench.backend.calls == [("step", "a")]


def test_one_bad_pass_fails_alone(bench):
    bench.model("a")
    good, bad, after = (bench.submit("a", *one) for one in ((1, passes()), (2, passes(loss="ppo")), (3, STEP)))
    bench.run()
    assert good.result().metrics["loss:sum"] > 0
    with pytest.raises(InvalidInput, match="'cross_entropy' only, not 'ppo'"):
        bad.result()
    assert after.result().metrics["grad_norm"] > 0


def test_a_backend_that_raises_fails_what_ran_and_nothing_else(bench):
    bench.model("a")
    bench.backend.trouble = MemoryError("no room")
    futures = [bench.submit("a", number, passes()) for number in (1, 2)]
    bench.engine.step()
    for future in futures:
        with pytest.raises(ServerError, match="MemoryError: no room"):
            future.result()
    step = bench.submit("a", 3, STEP)
    bench.engine.step()
    with pytest.raises(ServerError, match="MemoryError: no room"):
        step.result()
    bench.backend.trouble = None
    after = bench.submit("a", 4, STEP)
    bench.run()
    assert after.result().metrics == {"grad_norm": 0.0}


def test_a_model_that_could_not_be_created_says_so_to_everything_asked_of_it(bench):
    bench.backend.trouble = MemoryError("no room")
    created = bench.submit("a", 0, CreateModel(BASE, SPEC))
    later = [bench.submit("a", 1, passes()), bench.submit("a", 2, STEP)]
    bench.engine.step()
    bench.backend.trouble = None
    bench.run()
    with pytest.raises(ServerError, match="MemoryError: no room"):
        created.result()
    for future in later:
        with pytest.raises(ServerError, match="model a could not be created: MemoryError: no room"):
            future.result()


def test_an_unknown_model_is_refused(bench):
    with pytest.raises(UnknownName, match="there is no model 'a' here"):
        bench.submit("a", 1, STEP)


def test_an_ended_model_takes_nothing_more_and_is_freed_when_its_last_work_is_done(bench):
    bench.model("a")
    last = bench.submit("a", 1, passes())
    bench.engine.end_lane("a")
    bench.engine.end_lane("nobody")
    with pytest.raises(Forgotten, match="the session of model 'a' has ended"):
        bench.submit("a", 2, STEP)
    bench.run()
    assert last.done()
    assert bench.backend.calls == [("passes", "a"), ("drop", "a")]
    with pytest.raises(UnknownName):
        bench.submit("a", 2, STEP)


def test_a_backend_that_cannot_free_a_model_does_not_stop_the_others(bench, monkeypatch):
    """The engine's thread would end, and every client of this base model wait for ever."""
    bench.model("a"), bench.model("b")
    monkeypatch.setattr(bench.backend, "drop_model", {}.__getitem__)
    bench.engine.end_lane("a")
    bench.run()
    passed = bench.submit("b", 1, passes())
    bench.run()
    assert passed.result().metrics["loss:sum"] > 0


def test_saved_and_loaded_states_run_in_their_turn(bench):
    bench.model("a")
    operations = [
        passes(),
        STEP,
        SaveState("one"),
        passes(token=2),
        STEP,
        LoadState("tinker://a/weights/one", True),
        passes(),
    ]
    futures = [bench.submit("a", number, operation) for number, operation in enumerate(operations, start=1)]
    bench.run()
    assert futures[2].result().path == "tinker://a/weights/one"
    expected = futures[6].result().metrics
    assert expected != futures[0].result().metrics
    bench.submit("b", 0, CreateFromState(BASE, SPEC, "tinker://a/weights/one", True))
    copied = bench.submit("b", 1, passes())
    bench.run()
    assert copied.result().metrics == expected


def test_a_state_of_another_base_model_is_refused(bench):
    """Their tensors may well have the same names and shapes, and mean nothing to each other."""
    bench.model("a")
    bench.submit("a", 1, SaveState("one"))
    bench.run()
    bench.store.add_model("a", "a", "other/echo", SPEC, {})
    loaded = bench.submit("a", 2, LoadState("tinker://a/weights/one", optimizer=False))
    bench.run()
    with pytest.raises(InvalidInput, match="was trained on 'some/echo', this model on 'other/echo'"):
        loaded.result()


def test_a_missing_state_leaves_no_model_behind(bench):
    created = bench.submit("b", 0, CreateFromState(BASE, SPEC, "tinker://a/weights/none", True))
    bench.run()
    with pytest.raises(UnknownName, match="there is no checkpoint 'tinker://a/weights/none'"):
        created.result()
    assert bench.backend.calls == []


def test_a_nameless_snapshot_lies_in_its_sessions_folder(bench):
    bench.model("s:train:0")
    snapshot = bench.submit("s:train:0", 1, SaveForSampler())
    bench.run()
    row = bench.store.sampler(snapshot.result().sampling_session_id)
    assert row["session_id"] == "s"
    assert (bench.data_dir / row["folder"]).parent == bench.data_dir / "snapshots" / "s"
    assert (bench.data_dir / row["folder"] / "adapter_model.safetensors").exists()


def test_closing_fails_what_waits_and_takes_nothing_more(bench):
    bench.model("a")
    waiting = [bench.submit("a", number, STEP) for number in (1, 3)]
    bench.engine.close()
    for future in waiting:
        with pytest.raises(Stopped, match="shut down before this operation ran"):
            future.result()
    with pytest.raises(Stopped):
        bench.submit("a", 4, STEP)
    assert bench.backend.closed


def test_on_its_thread_it_sees_work_that_comes_from_others(bench):
    bench.engine.start()
    submitted = []

    def train(model_id):
        submitted.append(bench.submit(model_id, 0, CreateModel(BASE, SPEC)))
        for number in range(1, 30):
            submitted.append(bench.submit(model_id, number, passes() if number % 2 else STEP))

    threads = [threading.Thread(target=train, args=(f"model {index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for future in submitted:
        future.result(timeout=60)
    bench.engine.close()
    assert len(submitted) == 4 * 30


def test_on_its_thread_it_wakes_up_to_give_up_a_gap(tmp_path):
    bench = Bench(tmp_path)
    engine = Engine(bench.engine._executor, gap_seconds=0.01)
    engine.start()
    for seq_id, operation in ((0, CreateModel(BASE, SPEC)), (2, STEP)):
        work = engine.submit("a", seq_id, operation, fingerprint(**parts_of(operation)))
    assert work.future.result(timeout=60).metrics == {"grad_norm": 0.0}
    engine.close()


def test_the_engine_says_what_a_models_operations_wait_for(bench):
    seen = []
    bench._open = lambda: seen.append(bench.engine.waits_for("s:train:0")) or bench.backend
    bench.engine._executor._open_backend = bench._open
    model = bench.model("s:train:0")
    assert seen == ["the base model is being loaded for training"]
    assert bench.engine.waits_for(model) is None
    bench.submit(model, 2, OptimStep(AdamParams()))
    assert bench.engine.waits_for(model) == "the request with seq_id 1 has not arrived; later ones wait for it"
    bench.submit(model, 1, OptimStep(AdamParams()))
    assert bench.engine.waits_for(model) is None
    assert bench.engine.waits_for("another") is None
