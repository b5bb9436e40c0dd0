"""What a check is, and how one is run."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weaver.conformance.lab import Lab


class Failed(Exception):
    """The server did something else; the message says what."""


class Skipped(Exception):
    """This server does not give what the check needs; the message says what."""


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a server must do. Its name and why it matters are the function's name and docstring."""

    group: str
    function: "Callable[[Lab], None]"

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def why(self) -> str:
        return " ".join((self.function.__doc__ or "").split())


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How a check ended. `detail` says why it failed or was skipped."""

    check: Check
    outcome: Outcome
    detail: str
    seconds: float


def require(condition: bool, otherwise: str) -> None:
    """Raise Failed with a sentence unless the condition holds."""
    if not condition:
        raise Failed(otherwise)


def run_checks(checks: "Iterable[Check]", lab: "Lab") -> Iterator[CheckResult]:
    """Run each check and tell how it ended; one that fails is in no other's way."""
    for check in checks:
        begin = time.monotonic()
        outcome, detail = _outcome(check, lab)
        yield CheckResult(check, outcome, detail, time.monotonic() - begin)


def _outcome(check: Check, lab: "Lab") -> tuple[Outcome, str]:
    try:
        check.function(lab)
    except Failed as failure:
        return Outcome.FAILED, str(failure)
    except Skipped as reason:
        return Outcome.SKIPPED, str(reason)
    except Exception as error:  # noqa: BLE001 -- whatever the SDK raises because of the server is the server's failure
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    return Outcome.PASSED, ""
