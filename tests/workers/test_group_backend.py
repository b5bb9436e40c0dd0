"""A backend in two processes that meet in collectives: it computes what one does, and loses nothing with a process."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import psutil
import pytest

from weaver import workers
from weaver.backend import ModelSource
from weaver.domain import AdamParams, GraphInput, GraphNode, LoraSpec, LossGraph, ModelState, NodeRef
from weaver.errors import InvalidInput, LossFailed, ServerError, Stopped, UnknownName, WorkerLost
from weaver.workers import group, kept_models
from weaver.workers.group_backend import GroupBackend

GONE_SECONDS = 30


def run(backend, operations):
    return [operation(backend) for operation in operations]


def kill(backend, rank):
    os.kill(backend.pids[rank], signal.SIGKILL)


def test_two_processes_compute_what_one_does(open_backend, twin, lesson, assert_same_models):
    backend = open_backend()
    loss = {"loss": "weighted"}
    found, expected = run(backend, lesson.operations(**loss)), run(twin, lesson.operations(**loss))
    for mine, theirs in zip(found[2] + found[5], expected[2] + expected[5], strict=True):
        assert mine.metrics == pytest.approx(theirs.metrics, abs=1e-6)
        for logprobs, others in zip(mine.logprobs, theirs.logprobs, strict=True):
            np.testing.assert_allclose(logprobs, others, atol=1e-6)
    assert found[3] == pytest.approx(expected[3])
    assert_same_models(backend, twin)


@pytest.mark.parametrize("patience", [0.0, 1e9], ids=["from a copy", "from the beginning"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", range(1, 11))
def test_a_process_killed_between_operations_changes_nothing(
    place, rank, patience, echoes, lesson, assert_same_models, monkeypatch
):
    monkeypatch.setattr(kept_models, "PATIENCE", patience)
    backend, twin = echoes
    for number, operation in enumerate(lesson.operations()):
        if number == place:
            kill(backend, rank)
        operation(backend)
    run(twin, lesson.operations())
    assert_same_models(backend, twin)


def test_a_loaded_state_comes_back_and_a_dropped_model_does_not(echoes, lesson, assert_same_models):
    backend, twin = echoes
    for each in echoes:
        run(each, lesson.operations())
        each.forward_backward([lesson.one_pass(7, "b")])  # its gradients go with the weights that are replaced
        each.import_state("b", each.export_state("a", optimizer=True))
        each.drop_model("a")
    kill(backend, 1)
    for each in echoes:
        each.forward_backward([lesson.one_pass(8, "b")])
        each.optim_step("b", lesson.STEP)
    assert_same_models(backend, twin, ["b"])
    with pytest.raises(ServerError, match="KeyError: 'a'"):
        backend.export_state("a", optimizer=False)


def test_a_process_killed_in_the_middle_of_a_pass_changes_nothing(
    open_backend, twin, lesson, assert_same_models, deaths
):
    backend = open_backend()
    found = run(backend, lesson.operations(loss="deadly", times=1))
    assert len(list(deaths.iterdir())) == 1, "nobody was killed, so it would prove nothing"
    expected = run(twin, lesson.operations(loss="weighted"))
    assert found[5][0].metrics == pytest.approx(expected[5][0].metrics)
    assert_same_models(backend, twin)


def test_a_process_that_ends_while_nobody_calls_comes_back_at_once(registry, lesson):
    factory, source = registry.backend("echoes"), ModelSource("echo", "echo")
    begin = workers.Begin(factory.name, source, frozenset())
    again, groups = threading.Event(), []

    def start(ended):
        groups.append(group.Group(begin, 2, ended))
        if len(groups) == 2:
            again.set()
        return groups[-1]

    backend = GroupBackend(start)
    backend.create_model("a", lesson.LORA)
    before = backend.pids
    kill(backend, 1)
    assert again.wait(60)
    assert set(backend.pids).isdisjoint(before)
    assert psutil.pid_exists(before[0]) is False
    assert backend.export_state("a", optimizer=False).adapter.lora == lesson.LORA
    backend.close()


def test_what_kills_a_process_twice_fails_and_has_not_happened(open_backend, twin, lesson, assert_same_models, deaths):
    backend = open_backend()
    before = list(lesson.operations())[:10]
    run(backend, before)
    run(twin, before)
    with pytest.raises(WorkerLost, match=r"rank 1 of 2 \(process \d+\) was ended by signal 9 \(SIGKILL\)") as failed:
        backend.forward_backward([lesson.one_pass(9, loss="deadly", times=1000)])
    assert str(failed.value).endswith("during forward_backward, for the second time; it did not happen, nothing "
                                      "else is lost")  # fmt: skip
    assert len(list(deaths.iterdir())) == 2
    for each in (backend, twin):
        each.optim_step("a", lesson.STEP)
    assert_same_models(backend, twin)


def test_a_pass_that_fails_in_one_process_only_counts_in_none(open_backend, twin, lesson, assert_same_models):
    backend = open_backend()
    before = list(lesson.operations())[:10]
    run(backend, before)
    run(twin, before)
    with pytest.raises(ServerError, match=r"rank 0 was done \(done\); rank 1 was done \(failed\)"):
        backend.forward_backward([lesson.one_pass(9, loss="partial")])
    for each in (backend, twin):
        each.optim_step("a", lesson.STEP)
    assert_same_models(backend, twin)


def test_nobody_waits_for_ever_for_a_process_that_has_failed(open_backend, lesson, monkeypatch):
    monkeypatch.setattr(group, "AGREE_SECONDS", 0.5)
    backend = open_backend()
    backend.create_model("a", lesson.LORA)
    with pytest.raises(ServerError, match="rank 1 raised RuntimeError: no room here; rank 0 did not answer"):
        backend.create_model("c", LoraSpec(rank=13, seed=1))
    backend.create_model("c", LoraSpec(rank=3, seed=1))
    assert backend.export_state("a", optimizer=False).adapter.lora == lesson.LORA


def test_what_all_refuse_is_refused_by_the_same_class_and_nobody_starts_again(shared, lesson):
    before = shared.pids
    shared.create_model("r", lesson.LORA)
    state = shared.export_state("r", optimizer=False)
    wrong = replace(state.adapter, tensors={"unknown": np.zeros(1, np.float32)})
    with pytest.raises(InvalidInput):
        shared.import_state("r", ModelState(wrong, None))
    shared.drop_model("r")
    assert shared.pids == before


def test_a_pass_fails_alone_as_a_value_of_its_class(shared, lesson):
    shared.create_model("v", lesson.LORA)
    bad = lesson.one_pass(1, "v")
    weights = [replace(one, loss_fn_inputs={**one.loss_fn_inputs, "weights": one.loss_fn_inputs["weights"] * np.nan})
               for one in bad.data]  # fmt: skip
    failed, done = shared.forward_backward([replace(bad, data=tuple(weights)), lesson.one_pass(2, "v")])
    assert isinstance(failed, LossFailed)
    assert "cross_entropy" in str(failed)
    assert done.metrics["loss:sum"] != 0
    shared.drop_model("v")


def test_a_graph_travels_as_a_graph(shared, lesson, registry, twin):
    nodes = (
        GraphNode("placeholder", "lp", "logprobs", (), {}),
        GraphNode("placeholder", "w", "weights", (), {}),
        GraphNode("call_function", "m", "operator.mul", (NodeRef("lp"), NodeRef("w")), {}),
        GraphNode("call_method", "s", "sum", (NodeRef("m"),), {}),
        GraphNode("output", "out", "output", ((NodeRef("s"), {}),), {}),
    )
    graph = LossGraph("mine", (GraphInput("logprobs", 1), GraphInput("weights", 1)), nodes)
    loss = registry.loss("custom").from_graph(graph)
    one = replace(lesson.one_pass(1, "g"), loss=loss)
    for each in (shared, twin):
        each.create_model("g", lesson.LORA)
    [found], [expected] = shared.forward_backward([one]), twin.forward_backward([one])
    assert found.metrics == pytest.approx(expected.metrics)
    shared.drop_model("g")


def test_a_loss_that_the_processes_lack_is_named_with_the_process_and_the_remedy(shared, lesson, registry):
    one = lesson.one_pass(1, "m")
    shared.create_model("m", lesson.LORA)
    only_here = replace(one, loss=replace(one.loss, name="only_here"))
    missing, done = shared.forward_backward([only_here, one])
    assert isinstance(missing, UnknownName)
    pid = shared.pids[0]
    assert str(missing).startswith(f"rank 0 of 2 (process {pid}) has not the loss 'only_here', which the server has: ")
    assert "Install the loss's package, in the same version" in str(missing)
    assert done.metrics["loss:sum"] != 0, "the other pass must run"
    shared.drop_model("m")


def test_a_backend_that_refuses_to_open_says_why_and_leaves_nobody(factory, source):
    before = _ranks(psutil.Process())
    with pytest.raises(InvalidInput, match="ranks is 5; the model has 4 heads"):
        workers.open_backend(factory, replace(source, options={"ranks": 5, "loud": False}))
    assert _ranks(psutil.Process()) == before


def test_a_closed_backend_leaves_nobody_and_says_so(echoes):
    backend, _ = echoes
    processes = [psutil.Process(pid) for pid in backend.pids]
    backend.close()
    assert not any(process.is_running() for process in processes)
    with pytest.raises(Stopped):
        backend.optim_step("a", AdamParams())


def _ranks(parent):
    return [child for child in parent.children(recursive=True) if "weaver.workers.rank" in child.cmdline()]
