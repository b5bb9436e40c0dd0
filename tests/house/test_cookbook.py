"""The cookbook's cases demand something: a recipe that ended well and did nothing passes none of them."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "cookbook"
sys.path.insert(0, str(FOLDER))
from cases import CASES, GATE  # noqa: E402
from criteria import (  # noqa: E402
    Outcome,
    falls_to,
    goes_on_at,
    has_gone_further,
    passes,
    reaches,
    repeats,
    rolls,
    stays_within,
    trains,
)

sys.path.remove(str(FOLDER))

MODULES = {
    "sl_loop", "rl_loop", "sl_basic", "rl_basic", "chat_sl.train", "prompt_distillation.train", "math_rl.train",
    "multiplayer_rl.guess_number.train", "preference.dpo.train", "preference.shorter.train",
    "preference.rlhf.rlhf_pipeline", "distillation.on_policy_distillation", "distillation.off_policy_reasoning",
    "sdft.train",
}  # fmt: skip


def outcome(folder, rows, **more):
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i} | row) + "\n" for i, row in enumerate(rows)))
    return Outcome(folder, 0, "", **more)


def met(criterion, found):
    return all(finding.met for finding in criterion(found))


def test_every_recipe_that_shall_run_has_a_case_for_each_release():
    for release in ("0.6.1", "0.5.8"):
        modules = {case.module.removeprefix("tinker_cookbook.recipes.") for case in CASES if release in case.releases}
        assert modules >= MODULES
    assert len({case.name for case in CASES}) == len(CASES)
    assert set(GATE) <= {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recipe_that_does_nothing_passes_no_case(case, tmp_path):
    notes = {"kept": set(), "before": [], "after": [], "resumed_at": []}
    assert not met(case.criterion, outcome(tmp_path, [], forward_backwards=0, notes=notes))


def test_what_stands_still_has_not_learned(tmp_path):
    flat, fallen = [{"nll": 2.0}] * 4, [{"nll": 2.0 / (i + 1)} for i in range(4)]
    assert not met(falls_to("nll", 0.5), outcome(tmp_path, flat))
    assert met(falls_to("nll", 0.5), outcome(tmp_path, fallen))
    assert not met(reaches("nll", 1.9), outcome(tmp_path, flat)), "it was there from the start"
    assert not met(stays_within("nll", 1.0), outcome(tmp_path, fallen))
    assert not met(stays_within("missing", 1.0), outcome(tmp_path, fallen))


def test_training_is_counted_where_a_server_counts(tmp_path):
    found = outcome(tmp_path, [], forward_backwards=3, trained_tokens=10)
    assert met(trains(3), found)
    assert not met(trains(4), found)
    assert not met(trains(3), replace(found, forward_backwards=None, trained_tokens=0))


def test_a_resumed_run_goes_on_at_its_checkpoint_with_the_same_numbers(tmp_path):
    before = [{"step": step, "nll": 1.0 / (step + 1), "time": 1} for step in range(6)]
    after = [*before[:4], *({**row, "time": 2} for row in before[4:])]
    notes = {"before": before, "after": after, "resumed_at": [4, 5]}
    found = outcome(tmp_path, [], notes=notes)
    assert met(goes_on_at(4), found)
    assert not met(goes_on_at(3), found)
    assert met(repeats("nll", 1e-4), found)
    assert not met(has_gone_further("nll", 4), found)
    other = replace(found, notes={**notes, "after": [*after[:4], {"step": 4, "nll": 0.1}]})
    assert not met(repeats("nll", 1e-4), other)
    assert met(has_gone_further("nll", 4), other)
    assert not met(repeats("nll", 1e-4), replace(found, notes={**notes, "resumed_at": []})), "nothing was repeated"


def test_rolling_checkpoints_are_deleted(tmp_path):
    records = [{"name": str(i), "rolling": True, "state_path": f"tinker://{i}"} for i in range(3)]
    (tmp_path / "checkpoints.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = outcome(tmp_path, [], notes={"kept": {"tinker://2"}})
    assert met(rolls(3), found)
    assert not met(rolls(3), replace(found, notes={"kept": {record["state_path"] for record in records}}))


@pytest.mark.parametrize(
    ("line", "enough"),
    [("4 passed in 3s", True), ("3 passed in 3s", False), ("4 passed, 1 failed in 3s", False), ("4 skipped", False)],
)
def test_upstreams_tests_must_pass_and_not_be_skipped(line, enough, tmp_path):
    found = replace(outcome(tmp_path, []), output=f"noise\n=== {line} ===\n")
    assert met(passes(4), found) is enough
