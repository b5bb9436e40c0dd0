"""What came out: a line per recipe while they run, a table at the end, and the same as JSON and Markdown."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from criteria import Finding

HEADS = {"server": "SDK and server", "process": "in process", "vllm": "SDK and server with vLLM"}


@dataclass(frozen=True)
class Result:
    case: str
    release: str
    way: str
    status: int | str
    findings: tuple[Finding, ...]
    seconds: float
    cpu_seconds: float

    @property
    def passed(self) -> bool:
        """It ended well, something was demanded of it, and everything demanded was met."""
        return self.status == 0 and bool(self.findings) and all(finding.met for finding in self.findings)


def print_result(result: Result) -> None:
    print(f"{_verdict(result)} {result.case} {result.release} {result.way} {_times(result)}", flush=True)
    if result.status != 0:
        print(f"       status {result.status}", flush=True)
    for finding in result.findings:
        print(f"       {'+' if finding.met else '-'} {finding.demand}: {finding.measured}", flush=True)


def print_table(results: Sequence[Result]) -> None:
    width = max((len(result.case) for result in results), default=0)
    print()
    for result in results:
        said = "; ".join(finding.measured for finding in result.findings) or str(result.status)
        print(f"{_verdict(result)} {result.case:{width}} {result.release} {result.way:7} {_times(result)}  {said}")
    print(f"{sum(result.passed for result in results)} of {len(results)} passed")


def _verdict(result: Result) -> str:
    return "ok    " if result.passed else "FAILED"


def _times(result: Result) -> str:
    return f"{result.seconds:.0f} s, {result.cpu_seconds:.0f} CPU-s"


def write_results(file: Path, results: Sequence[Result]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(result) | {"passed": result.passed} for result in results], indent=1))


def merged(before: Sequence[Result], after: Sequence[Result]) -> list[Result]:
    """The newest result of each case, release and way."""
    newest = {(result.case, result.release, result.way): result for result in (*before, *after)}
    return list(newest.values())


def read_results(file: Path) -> list[Result]:
    rows = json.loads(file.read_text()) if file.is_file() else []
    return [
        Result(
            row["case"],
            row["release"],
            row["way"],
            row["status"],
            tuple(Finding(**finding) for finding in row["findings"]),
            row["seconds"],
            row["cpu_seconds"],
        )
        for row in rows
    ]


def markdown(results: Sequence[Result]) -> str:
    """A row for each case, a column for each release and way: what was measured, in the order of what is demanded."""
    columns = list(dict.fromkeys((result.release, result.way) for result in results))
    cells = {(result.case, result.release, result.way): _cell(result) for result in results}
    demands = {result.case: "; ".join(finding.demand for finding in result.findings) for result in results}
    heads = [f"{release}, {HEADS[way]}" for release, way in columns]
    lines = [f"| case | must show | {' | '.join(heads)} |", f"|---|---|{'---|' * len(columns)}"]
    for case, demand in demands.items():
        row = [cells.get((case, *column), "") for column in columns]
        lines.append(f"| {case} | {_escaped(demand)} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(result: Result) -> str:
    said = "; ".join(finding.measured for finding in result.findings) or str(result.status)
    return _escaped(f"{'' if result.passed else '**failed** '}{said} ({result.cpu_seconds:.0f} CPU-s)")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
