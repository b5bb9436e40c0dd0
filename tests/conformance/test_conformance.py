"""The checks pass on our server, and each of them can fail: servers with one known fault are caught by name."""

import json
import sys
from pathlib import Path

import conformance_faults as faults
from click.testing import CliRunner

from weaver.conformance.catalog import CHECKS
from weaver.conformance.checks import Outcome, run_checks
from weaver.conformance.lab import Lab
from weaver.server.cli import weaver

MODEL = "tiny/llama"
ROOT = Path(__file__).parents[2]
GROUPS = list(dict.fromkeys(check.group for check in CHECKS))


def command(*arguments):
    return CliRunner().invoke(weaver, ["conformance", *map(str, arguments)])


def failing(url, groups):
    """The names of the checks that fail, by group."""
    lab = Lab(url, "tml-test", MODEL)
    results = list(run_checks([check for check in CHECKS if check.group in groups], lab))
    failed = {group: set() for group in groups}
    for result in results:
        if result.outcome is Outcome.FAILED:
            failed[result.check.group].add(result.check.name)
    return failed


def assert_caught(failed, **expected):
    """`group=names`: these checks of the group fail, whatever others of it do; the other groups are green."""
    named = {group.replace("_", " "): set(names.split()) for group, names in expected.items()}
    for group, names in failed.items():
        if group in named:
            assert names >= named[group], group
        else:
            assert names == set(), group


def test_our_server_passes_every_check(url, tmp_path):
    result = command(url, "--json", tmp_path / "results.json")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "results.json").read_text())
    skipped = [one["name"] for one in written["checks"] if one["outcome"] == "skipped"]
    assert skipped == []
    assert (written["passed"], written["failed"]) == (len(CHECKS), 0)
    assert (written["url"], written["model"]) == (url, MODEL)
    assert all(one["why"] and one["group"] in GROUPS for one in written["checks"])


NUMBERS = ["gradient semantics", "optimizer fields", "snapshots and isolation", "sampling", "prompt logprobs"]
ALL_BUT_RETRIES = ["protocol", *NUMBERS, "checkpoints"]


def test_a_snapshot_that_shares_the_live_slot_is_caught(serving, tmp_path):
    fault = faults.SharesTheLiveSlot(tmp_path)
    with serving(wrap_backend=fault.backend, wrap_sampler=fault.sampler) as url:
        assert_caught(
            failing(url, ALL_BUT_RETRIES),
            snapshots_and_isolation="a_saved_snapshot_never_changes a_nameless_snapshot_never_changes",
        )


def test_a_gradient_divided_by_the_sum_of_weights_is_caught(serving):
    """Optimizer checks give gradients by their weights, so some of them see it too."""
    with serving(wrap_backend=faults.DividesByTheSumOfWeights) as url:
        assert_caught(
            failing(url, ALL_BUT_RETRIES),
            gradient_semantics="weights_scale_the_gradient passes_accumulate a_datum_given_twice_counts_twice "
            "the_gradient_is_the_losss_own",
            optimizer_fields="",
        )


def test_a_missing_prompt_logprob_is_caught(serving):
    """Isolation and checkpoints are seen through prompt logprobs and suffer; training does not."""
    with serving(wrap_sampler=faults.loses_a_prompt_logprob) as url:
        failed = failing(url, ["protocol", "gradient semantics", "optimizer fields", "prompt logprobs"])
    assert_caught(failed, prompt_logprobs="one_logprob_per_prompt_token")


def test_decay_of_all_adapters_is_caught(serving):
    with serving(wrap_backend=faults.DecaysEveryAdapter) as url:
        assert_caught(failing(url, ALL_BUT_RETRIES), snapshots_and_isolation="decay_of_one_model_leaves_others")


def test_ignored_betas_are_caught(serving):
    """A check of checkpoints compares with steps of no momentum, and is right to see it too."""
    with serving(wrap_backend=faults.IgnoresBetas) as url:
        assert_caught(
            failing(url, ["protocol", "optimizer fields", "sampling", "prompt logprobs"]),
            optimizer_fields="beta1_averages_the_gradients beta2_averages_the_squares",
        )


def test_a_retry_that_is_executed_twice_is_caught(serving):
    with serving(service_class=faults.ExecutesRetries) as url:
        assert_caught(
            failing(url, ["ordering and retries", "gradient semantics", "sampling"]),
            ordering_and_retries="a_retried_pass_counts_once a_retried_step_counts_once "
            "a_repeat_after_the_result_changes_nothing",
        )


def test_refusals_that_name_nothing_are_caught(serving):
    """All but the one that becomes known only when it runs, and is told as a result."""
    with serving(wrap_app=faults.SaysNothing) as url:
        failed = failing(url, ["errors"])["errors"]
    assert failed == {check.name for check in CHECKS if check.group == "errors"} - {
        "a_state_that_does_not_exist_is_refused"
    }


def test_a_failed_check_is_told_with_what_was_seen_and_why_it_matters(serving, tmp_path):
    with serving(wrap_backend=faults.DecaysEveryAdapter) as url:
        result = command(url, "--only", "decay_of_one_model_leaves_others", "--json", tmp_path / "results.json")
    assert result.exit_code == 1
    assert "failed" in result.output
    [one] = json.loads((tmp_path / "results.json").read_text())["checks"]
    assert one["outcome"] == "failed"
    assert one["detail"].startswith("an idle model, after a step with weight decay on another one: logprobs changed by")


def test_checks_are_chosen_by_name_and_by_group(url):
    result = command(url, "--only", "prompt logprobs", "--only", "a_heartbeat_is_answered", "--model", MODEL)
    assert result.exit_code == 0
    assert "9 checks" in result.output
    assert "there is no check and no group 'no-such'" in command(url, "--only", "no-such").output


def test_a_url_where_nothing_answers_is_told_and_no_check_runs():
    result = command("http://127.0.0.1:9")
    assert (result.exit_code, "no server of Tinker's protocol answers at http://127.0.0.1:9" in result.output) == (
        1,
        True,
    )
    assert command().exit_code == 2


def test_without_the_sdk_the_command_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("weaver.conformance")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tinker", None)
    result = command("--list")
    assert (result.exit_code, result.output.strip().endswith("pip install tinker")) == (1, True)


def test_the_list_and_the_document_name_every_check_and_why_it_matters():
    listed, document = command("--list").output, (ROOT / "docs/conformance.md").read_text()
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.why.endswith(".")
        assert check.name in listed
        assert check.why in listed
        assert f"| `{check.name}` | {check.why} |" in document, check.name
    assert document.count("\n| `") == len(CHECKS)
    headings = [line.removeprefix("### ") for line in document.splitlines() if line.startswith("### ")]
    assert headings == GROUPS
