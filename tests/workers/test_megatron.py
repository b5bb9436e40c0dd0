"""The backend megatron in processes that weaver starts: the contract, a killed process, layouts that do not fit."""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
from click.testing import CliRunner

from weaver import workers
from weaver.backend import ModelSource
from weaver.errors import InvalidInput
from weaver.server.cli import weaver
from weaver.testing import check_backend

TP2 = {"tp": 2}


@pytest.fixture(scope="module")
def megatron(registry):
    return registry.backend("megatron")


@pytest.fixture(scope="module")
def opened(megatron, model_folder):
    """Opens the backend for a layout, until the context ends."""

    @contextmanager
    def open_it(**layout):
        options = megatron.effective_options(layout)
        backend = workers.open_backend(megatron, ModelSource("tiny", str(model_folder), "cpu", options=options))
        try:
            yield backend
        finally:
            backend.close()

    return open_it


def test_two_ranks_keep_the_contract(megatron, check_losses):
    """Everything that `check_backend` compares with transformers, peft and torch; its losses are found by name."""
    options = megatron.effective_options(TP2)

    def open_it(source):
        return workers.open_backend(megatron, replace(source, options=options))

    check_backend(replace(megatron, open=open_it, processes=None), families=["llama"])


def test_a_rank_killed_in_the_middle_of_training_changes_nothing(opened, twin, lesson, assert_same_models, deaths):
    """Killed once inside a pass, by a loss of a third party, and once between two operations."""
    with opened(**TP2) as undisturbed, opened(**TP2) as backend:
        for number, operation in enumerate(lesson.operations(loss="deadly_first", times=1)):
            if number == 10:
                os.kill(backend.pids[1], signal.SIGKILL)
            operation(backend)
        assert len(list(deaths.iterdir())) == 1, "nobody was killed, so it would prove nothing"
        for each in (undisturbed, twin):
            for operation in lesson.operations(loss="weighted"):
                operation(each)
        assert_same_models(backend, undisturbed)
        assert_same_models(backend, twin, tolerance=1e-4)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"tp": 3}, "tp is 3, but 'tiny' has 4 attention heads and 2 key/value heads"),
        ({"tp": 4}, "2 key/value heads cannot be divided by 4; use one of --tp 1, 2"),
        ({"ep": 2}, "ep is 2"),
        ({"sequence_parallel": True}, "sequence_parallel splits tokens over the ranks of tp, which is 1"),
        ({"tp": 2, "process_group": "nccl"}, "process_group nccl needs a CUDA device for each of the 2 processes"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_at_start_naming_the_number(layout, said, megatron, model_folder):
    source = ModelSource("tiny", str(model_folder), "cpu", options=megatron.effective_options(layout))
    with pytest.raises(InvalidInput) as refused:
        megatron.describe(source)
    assert said in str(refused.value)


def test_the_command_line_refuses_a_layout_before_it_listens(model_folder, tmp_path):
    model = ["--model", f"tiny={model_folder}", "--device", "cpu", "--data-dir", str(tmp_path)]
    refused = CliRunner().invoke(weaver, ["serve", "--backend", "megatron", "--tp", "3", *model])
    assert refused.exit_code == 1
    assert "tp is 3, but 'tiny' has 4 attention heads" in refused.output
