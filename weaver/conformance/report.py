"""Results for people and for programs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weaver.conformance.checks import Check, CheckResult, Outcome

_STYLES = {Outcome.PASSED: "green", Outcome.FAILED: "bold red", Outcome.SKIPPED: "yellow"}


def print_list(checks: Iterable[Check], console: Console) -> None:
    """Each check and why it matters."""
    for group, members in groupby(checks, key=lambda check: check.group):
        console.print(f"\n[bold]{group}[/bold]")
        for check in members:
            console.print(f"  {check.name}", soft_wrap=True, highlight=False)
            console.print(f"      {escape(check.why)}", soft_wrap=True, highlight=False)


def print_result(result: CheckResult, console: Console) -> None:
    """One line as soon as a check has ended."""
    style = _STYLES[result.outcome]
    console.print(
        f"[{style}]{result.outcome:8}[/{style}] {result.seconds:6.1f} s  {result.check.name}", highlight=False
    )


def print_summary(results: Sequence[CheckResult], console: Console) -> None:
    """A table by group; then, for all that did not pass, what was seen and why it matters."""
    table = Table("group", "passed", "failed", "skipped", "seconds")
    for group, members in groupby(results, key=lambda result: result.check.group):
        kept = list(members)
        counts = Counter(result.outcome for result in kept)
        numbers = [str(counts[outcome]) for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED)]
        table.add_row(group, *numbers, f"{sum(result.seconds for result in kept):.1f}")
    console.print(table)
    for result in results:
        if result.outcome is not Outcome.PASSED:
            style = _STYLES[result.outcome]
            console.print(f"[{style}]{result.outcome}[/{style}] {result.check.name}: {escape(result.detail)}")
            console.print(f"    {escape(result.check.why)}")


def as_json(results: Sequence[CheckResult], **about: str) -> dict[str, Any]:
    """What `--json` writes: how many passed, failed and were skipped, and every check."""
    counts = Counter(result.outcome for result in results)
    return about | {str(outcome): counts[outcome] for outcome in Outcome} | {"checks": [_row(one) for one in results]}


def _row(result: CheckResult) -> dict[str, Any]:
    return {
        "group": result.check.group,
        "name": result.check.name,
        "why": result.check.why,
        "outcome": str(result.outcome),
        "detail": result.detail,
        "seconds": round(result.seconds, 3),
    }
