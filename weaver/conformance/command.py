"""`weaver conformance`: find the server and the model, run the checks, say how it went."""

import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import httpx
import tinker
from rich.console import Console

from weaver.conformance.catalog import CHECKS
from weaver.conformance.checks import Check, CheckResult, Outcome, run_checks
from weaver.conformance.lab import Lab
from weaver.conformance.report import as_json, print_list, print_result, print_summary


class Unusable(Exception):
    """The checks cannot begin; the message says why."""


def list_checks() -> None:
    print_list(CHECKS, Console())


def conformance(
    url: str, *, model: str | None = None, api_key: str = "tml-conformance", only: Sequence[str] = (),
    json_file: Path | None = None,
) -> bool:  # fmt: skip
    """Run the checks and print them; True when none failed. Raises Unusable."""
    console = Console()
    _quiet()
    checks = chosen(only)
    lab = Lab(url, api_key, find_model(url, api_key, model))
    console.print(f"{lab.url}, model {lab.model}, tinker {tinker.__version__}: {len(checks)} checks", highlight=False)
    results = _run(checks, lab, console)
    print_summary(results, console)
    if json_file is not None:
        about = as_json(results, url=lab.url, model=lab.model, tinker=tinker.__version__)
        json_file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return all(result.outcome is not Outcome.FAILED for result in results)


def _run(checks: Sequence[Check], lab: Lab, console: Console) -> list[CheckResult]:
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the SDK's, about calls that must work as long as it has them
        for result in run_checks(checks, lab):
            print_result(result, console)
            results.append(result)
    return results


def chosen(only: Sequence[str]) -> tuple[Check, ...]:
    """The checks of these names or groups; all where none is named. Raises Unusable for a name there is not."""
    known = {check.name for check in CHECKS} | {check.group for check in CHECKS}
    for name in only:
        if name not in known:
            raise Unusable(f"there is no check and no group {name!r}; --list prints them")
    return tuple(check for check in CHECKS if not only or check.name in only or check.group in only)


def find_model(url: str, api_key: str, model: str | None) -> str:
    """The named model, or the first that the server says can be trained. Raises Unusable."""
    path = f"{url.rstrip('/')}/api/v1/get_server_capabilities"
    try:
        answer = httpx.get(path, headers={"X-API-Key": api_key}, timeout=30)
        answer.raise_for_status()
        listed = [one["model_name"] for one in answer.json()["supported_models"] if one.get("trainable") is not False]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"no server of Tinker's protocol answers at {url}: {type(error).__name__}: {error}") from error
    if model is not None:
        return model
    if not listed:
        raise Unusable(f"{url} lists no model that can be trained; name one with --model")
    return str(listed[0])


def _quiet() -> None:
    """The checks provoke errors and retries; the SDK's own remarks about them would bury the results."""
    os.environ["TINKER_TELEMETRY"] = "0"
    logging.getLogger("tinker").setLevel(logging.CRITICAL)
