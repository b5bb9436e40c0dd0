"""What proves that a recipe learned: conditions over the numbers it logged itself."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KL = "optim/kl_sample_train_v1"
REWARD = "env/all/reward/total"
NLL = "train_mean_nll"


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []


@dataclass(frozen=True)
class Outcome:
    """What a recipe left behind. `forward_backwards` is None where no server counted them."""

    log: Path
    status: int
    output: str
    forward_backwards: int | None = None
    trained_tokens: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, below: str = "") -> list[dict[str, Any]]:
        return read_lines(self.log / below / "metrics.jsonl")

    def values(self, key: str, below: str = "") -> list[float]:
        return [row[key] for row in self.rows(below) if row.get(key) is not None]

    def checkpoints(self) -> list[dict[str, Any]]:
        return read_lines(self.log / "checkpoints.jsonl")


@dataclass(frozen=True)
class Finding:
    """One condition: what it demands, what was measured, and whether that is enough."""

    demand: str
    measured: str
    met: bool


Criterion = Callable[[Outcome], Iterator[Finding]]


def all_of(*criteria: Criterion) -> Criterion:
    def check(outcome: Outcome) -> Iterator[Finding]:
        for criterion in criteria:
            yield from criterion(outcome)

    return check


def _short(values: Sequence[float]) -> str:
    return f"{values[0]:.3g} -> {values[-1]:.3g}" if values else "nothing logged"


def falls(key: str, below: float, *, above_at_first: float | None = None, of: str = "") -> Criterion:
    """The last value is below a bound, the first was above the same or another."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        values = outcome.values(key, of)
        first = below if above_at_first is None else above_at_first
        met = len(values) > 1 and values[0] > first and values[-1] < below
        yield Finding(f"{_name(key, of)} falls below {below:g}", _short(values), met)

    return check


def falls_to(key: str, share: float, of: str = "") -> Criterion:
    """The last value is at most `share` of the first."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        values = outcome.values(key, of)
        met = len(values) > 1 and values[-1] <= share * values[0]
        yield Finding(f"{_name(key, of)} falls to {share:g} of itself", _short(values), met)

    return check


def reaches(key: str, least: float, *, from_below: float | None = None) -> Criterion:
    """Some value is at least `least`; the first was below that, or below `from_below`."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        values = outcome.values(key)
        start = least if from_below is None else from_below
        met = len(values) > 1 and values[0] < start and max(values) >= least
        best = f", best {max(values):.3g}" if values else ""
        yield Finding(f"{_name(key)} reaches {least:g}", _short(values) + best, met)

    return check


def rises_by(key: str, least: float) -> Criterion:
    """The last value is at least so much more than the first."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        values = outcome.values(key)
        met = len(values) > 1 and values[-1] - values[0] >= least
        yield Finding(f"{_name(key)} rises by {least:g}", _short(values), met)

    return check


def stays_within(key: str, bound: float, of: str = "") -> Criterion:
    """No value is further from zero than `bound`."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        values = outcome.values(key, of)
        worst = max(map(abs, values), default=float("nan"))
        yield Finding(f"|{_name(key, of)}| < {bound:g}", f"at most {worst:.1e}", worst < bound)

    return check


def begins_at(key: str, value: float, tolerance: float) -> Criterion:
    def check(outcome: Outcome) -> Iterator[Finding]:
        values = outcome.values(key)
        met = bool(values) and abs(values[0] - value) <= tolerance
        yield Finding(f"{_name(key)} begins at {value:g} ± {tolerance:g}", _short(values[:1]), met)

    return check


def begins_below(key: str, share: float, untrained: str) -> Criterion:
    """The first value is at most `share` of the first one of another case, which began without this training."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        found, other = outcome.values(key), Outcome(outcome.log.parent / untrained, 0, "").values(key)
        met = bool(found and other) and found[0] <= share * other[0]
        yield Finding(f"{_name(key)} begins at {share:g} of untrained", _short([*other[:1], *found[:1]]), met)

    return check


def begins_above(key: str, by: float, untrained: str) -> Criterion:
    """The first value is at least so much more than another case's first, which began without this training."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        found, other = outcome.values(key), Outcome(outcome.log.parent / untrained, 0, "").values(key)
        met = bool(found and other) and found[0] - other[0] >= by
        yield Finding(f"{_name(key)} begins {by:g} above untrained", _short([*other[:1], *found[:1]]), met)

    return check


def lags(key: str, behind: str) -> Criterion:
    """In some step the number `key` is less than `behind`."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        gaps = [theirs - ours for ours, theirs in zip(outcome.values(key), outcome.values(behind), strict=True)]
        met = any(gap > 0 for gap in gaps)
        yield Finding(f"{_name(key)} is behind {_name(behind)}", f"by at most {max(gaps, default=0):g}", met)

    return check


def trains(least: int) -> Criterion:
    """The server ran at least so many forward_backward calls; in process, tokens were trained on."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        calls, tokens = outcome.forward_backwards, outcome.trained_tokens
        if calls is None:
            yield Finding("tokens are trained on", f"{tokens} tokens", tokens > 0)
        else:
            yield Finding(f"{least} forward_backward", f"{calls}, {tokens} tokens", calls >= least and tokens > 0)

    return check


def saves(*names: str) -> Criterion:
    """Checkpoints of these names are recorded, each with a state and a sampler."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        whole = [one["name"] for one in outcome.checkpoints() if one.get("state_path") and one.get("sampler_path")]
        yield Finding(f"saves {', '.join(names)}", ", ".join(whole) or "none", set(names) <= set(whole))

    return check


def logs_at(key: str, *steps: int) -> Criterion:
    def check(outcome: Outcome) -> Iterator[Finding]:
        found = sorted(row["step"] for row in outcome.rows() if key in row)
        yield Finding(f"{_name(key)} at {list(steps)}", str(found), set(steps) <= set(found))

    return check


def rolls(least: int) -> Criterion:
    """Rolling checkpoints are recorded without a sampler; those replaced were deleted."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        rolling = [one for one in outcome.checkpoints() if one.get("rolling")]
        right = len(rolling) >= least and all("sampler_path" not in one for one in rolling)
        yield Finding(f"{least} rolling checkpoints", str(len(rolling)), right)
        kept = [one for one in rolling if one["state_path"] in outcome.notes["kept"]]
        yield Finding("replaced ones are deleted", f"{len(kept)} of {len(rolling)} kept", len(kept) < len(rolling))

    return check


def goes_on_at(step: int) -> Criterion:
    """After the kill the run went on at the step of its last checkpoint."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        first = min(outcome.notes["resumed_at"], default=None)
        yield Finding(f"goes on at step {step}", f"at step {first}", first == step)

    return check


def _before_and_after(outcome: Outcome, key: str) -> dict[int, tuple[float, float]]:
    """What a step logged before the kill and when it was repeated."""
    before = {row["step"]: row[key] for row in outcome.notes["before"] if key in row}
    resumed = set(outcome.notes["resumed_at"])
    after = {row["step"]: row[key] for row in outcome.notes["after"] if key in row and row["step"] in resumed}
    return {step: (before[step], after[step]) for step in sorted(set(before) & set(after))}


def repeats(key: str, tolerance: float) -> Criterion:
    """The steps that had to be repeated gave the same numbers again."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        twice = _before_and_after(outcome, key)
        worst = max((abs(before - after) for before, after in twice.values()), default=float("nan"))
        demand = f"repeated steps agree within {tolerance:g}"
        yield Finding(demand, f"steps {list(twice)}: {worst:.1e}", worst <= tolerance)

    return check


def has_gone_further(key: str, step: int) -> Criterion:
    """The repeated step is better than the first time: the recipe saves behind a batch that it has sent already, so the
    checkpoint of a step holds that step's update too."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        before, after = _before_and_after(outcome, key).get(step, (float("nan"), float("nan")))
        yield Finding(f"{_name(key)} at the repeated step falls", f"{before:.3g} -> {after:.3g}", after < 0.8 * before)

    return check


def passes(least: int) -> Criterion:
    """pytest reports so many passed tests and nothing else."""

    def check(outcome: Outcome) -> Iterator[Finding]:
        last = [line for line in outcome.output.splitlines() if re.search(r"\d (passed|failed|error|skipped)", line)][
            -1:
        ]
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", "".join(last))}
        met = counts.get("passed", 0) >= least and not {"failed", "error", "errors", "skipped"} & set(counts)
        tests = "tests pass" if least > 1 else "test passes"
        yield Finding(f"{least} {tests}", ", ".join(f"{n} {word}" for word, n in counts.items()), met)

    return check


def _name(key: str, of: str = "") -> str:
    short = {KL: "KL(sampler, trainer)", REWARD: "reward", NLL: "NLL"}.get(key, key)
    return f"{of} {short}".strip()
