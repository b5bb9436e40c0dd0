"""Run the tinker-cookbook's recipes, unmodified, on weaver; print what each learned, and write the table.

    python tests/cookbook/run.py [--release 0.6.1]... [--way server|process|vllm]... [--only NAME]... [--work DIR]

`make cookbook` installs what this needs. The status is 1 where a recipe failed or did not learn what it should.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cases import CASES, GATE, GUESSER, RELEASES, Case
from criteria import Outcome, read_lines
from place import ROOT, Place
from report import Result, markdown, merged, print_result, print_table, read_results, write_results
from ways import ON_DEMAND, WAYS, Running, running


def chosen(only: Sequence[str], release: str, done: Callable[[str], bool]) -> list[Case]:
    """The cases asked for, and before each what it continues from, unless that is done."""
    named = {case.name: case for case in CASES if release in case.releases}
    wanted: dict[str, None] = {}
    for name in only or named:
        if name in named:
            wanted |= dict.fromkeys([*(need for need in named[name].needs if not done(need)), name])
    return [named[name] for name in wanted]


class Session:
    """One release run in one way: cases one after the other, each with a server of its own on the same data."""

    def __init__(self, release: str, way: str, work: Path, *, keep: bool = False) -> None:
        self.way = way
        self.place = Place(release, work / f"{release}-{way}")
        if not keep:
            self.place.clear()
        self._models: dict[str, list[str]] = {}

    def run(self, case: Case) -> Result:
        started, worked = time.monotonic(), _cpu_seconds()
        try:
            findings = list(case.criterion(outcome := self._outcome(case)))
            status = outcome.status
        except Exception as error:  # noqa: BLE001 - the table names whatever went wrong, and the other cases go on
            findings, status = [], f"{type(error).__name__}: {_last_line(str(error))}"
        seconds = (time.monotonic() - started, _cpu_seconds() - worked)
        return Result(case.name, self.place.release, self.way, status, tuple(findings), *seconds)

    def done(self, name: str) -> bool:
        return (self.place.runs / name / "checkpoints.jsonl").is_file()

    def _outcome(self, case: Case) -> Outcome:
        log = self.place.runs / (case.log or case.name)
        shutil.rmtree(log, ignore_errors=True)
        models = self._served(case)
        command, trained = self._command(case, log), self.place.trained_tokens()
        if case.seeded_by:
            self._seed(log, case.seeded_by)
        with running(self.way, self.place, case.workbench, models) as ready:
            notes: dict[str, object] = {}
            if case.killed_after is not None:
                self._run_until(case, ready, command, log)
                notes["before"] = read_lines(log / "metrics.jsonl")
            status, output = self._run(case, ready, command)
            calls = ready.forward_backwards()
        after = read_lines(log / "metrics.jsonl")
        if case.killed_after is not None:
            notes |= {"after": after, "resumed_at": [row["step"] for row in after if row not in notes["before"]]}
        notes["kept"] = self.place.kept_checkpoints()
        return Outcome(log, status, output, calls, self.place.trained_tokens() - trained, notes)

    def _served(self, case: Case) -> list[str]:
        if case.workbench not in self._models:
            self._models[case.workbench] = self.place.write_workbench(case.workbench)
        models = self._models[case.workbench]
        if case.merged_from is None:
            return models
        merged = self.place.merge(self._saved(case.merged_from, "state_path"), case.merged_from)
        return [*models, *self.place.add_aliases(case.workbench, [f"{GUESSER}={merged}"])]

    def _saved(self, name: str, key: str) -> str:
        return str(read_lines(self.place.runs / name / "checkpoints.jsonl")[-1][key])

    def _seed(self, log: Path, name: str) -> None:
        log.mkdir(parents=True)
        line = f'{{"name": "init", "batch": 0, "state_path": "{self._saved(name, "state_path")}"}}\n'
        (log / "checkpoints.jsonl").write_text(line)

    def _command(self, case: Case, log: Path) -> list[str]:
        if case.tests:
            files = [str(self.place.sdist / file) for file in case.tests]
            config = ["-c", str(self.place.sdist / "pyproject.toml"), "--rootdir", str(self.place.sdist)]
            return ["-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *config, *files]
        words = {"{log}": str(log)}
        for name in case.needs:
            words |= {f"{{{name}.{key}}}": self._saved(name, key) for key in ("state_path", "sampler_path")}
        return ["-m", case.module, *(_filled(argument, words) for argument in case.arguments)]

    def _start(self, case: Case, ready: Running, command: list[str], output: Path) -> "subprocess.Popen[bytes]":
        with output.open("ab") as file:
            return subprocess.Popen(
                [*ready.command, *command],
                cwd=self.place.workbench(case.workbench),
                env=ready.environment | dict(case.environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _run(self, case: Case, ready: Running, command: list[str]) -> tuple[int, str]:
        output = self.place.folder / "logs" / f"{case.name}.log"
        recipe = self._start(case, ready, command, output)
        try:
            status = recipe.wait(case.minutes * 60)
        finally:
            _kill(recipe)
        return status, output.read_text(errors="replace")

    def _run_until(self, case: Case, ready: Running, command: list[str], log: Path) -> None:
        """Run until the step is logged, and kill it there: no handler runs, nothing is saved on the way out."""
        recipe = self._start(case, ready, command, self.place.folder / "logs" / f"{case.name}.killed.log")
        deadline = time.monotonic() + case.minutes * 60
        try:
            while not any(row.get("step") == case.killed_after for row in _written(log)):
                if recipe.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{case.name} ended before step {case.killed_after} was logged")
                time.sleep(0.02)
        finally:
            _kill(recipe)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _cpu_seconds() -> float:
    """What every process that was started and has ended has computed, recipes and servers alike."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _written(log: Path) -> list[dict[str, object]]:
    """The rows that are whole already."""
    file = log / "metrics.jsonl"
    whole, _, _ = (file.read_text() if file.is_file() else "").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _filled(argument: str, words: dict[str, str]) -> str:
    for placeholder, value in words.items():
        argument = argument.replace(placeholder, value)
    return argument


def _kill(recipe: "subprocess.Popen[bytes]") -> None:
    """The recipe and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(recipe.pid, signal.SIGKILL)
    recipe.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--release", action="append", choices=RELEASES)
    parser.add_argument("--way", action="append", choices=(*WAYS, *ON_DEMAND))
    parser.add_argument("--only", action="append", default=[], choices=[case.name for case in CASES])
    parser.add_argument("--gate", action="store_true", help="only supervised training, then RL from its checkpoint")
    parser.add_argument("--keep", action="store_true", help="go on from what an earlier run left, instead of anew")
    parser.add_argument("--work", type=Path, default=ROOT / "build/cookbook", help="where everything is written")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    only = list(GATE) if given.gate else given.only
    results, file = [], given.work / "results.json"
    before = read_results(file) if given.keep else []
    for release in given.release or RELEASES:
        for way in given.way or WAYS:
            session = Session(release, way, given.work.resolve(), keep=given.keep)
            for case in chosen(only, release, session.done):
                results.append(session.run(case))
                print_result(results[-1])
                write_results(file, merged(before, results))
    print_table(results)
    table = file.with_suffix(".md")
    table.write_text(markdown(merged(before, results)))
    print(f"\n{file}\n{table}")
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
