"""Addresses of pages in the console of Tinker's vendor.

They are what the SDK's `get_console_url` methods give whichever server it talks to, so scripts that print them go on; a
run on another server has no page there.
"""

from urllib.parse import quote

_CONSOLE = "https://tinker.thinkingmachines.ai"


def session_url(session_id: str) -> str:
    return f"{_CONSOLE}/sessions/{session_id}"


def training_run_url(training_run_id: str) -> str:
    return f"{_CONSOLE}/training_runs/{training_run_id}"


def checkpoint_url(training_run_id: str, checkpoint_id: str) -> str:
    return f"{_CONSOLE}/checkpoints/{quote(training_run_id, safe='')}/{quote(checkpoint_id, safe='')}"


def playground_url(tinker_path: str) -> str:
    return f"{_CONSOLE}/playground?mode=checkpoint&checkpoint={quote(tinker_path, safe='')}"
