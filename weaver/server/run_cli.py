"""`weaver run`: a program written for `tinker`, with weaver's in its place."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from weaver.compat.tinker import as_tinker

STARTUP: Final = Path(as_tinker.__file__).parent / "startup"
_ANYTHING: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["--help"]}


@click.command(context_settings=_ANYTHING)
@click.option("-m", "is_module", is_flag=True, help="PROGRAM is the name of a module, as for python -m.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(is_module: bool, program: str, arguments: tuple[str, ...]) -> None:
    """Run a Python program in which `import tinker` means weaver's, for it and for every Python it starts.

    The program trains and samples in its own process; with TINKER_BASE_URL set, on that server.
    """
    if not is_module and not Path(program).exists():
        raise click.UsageError(f"there is no program {program!r}; for a module give -m")
    command = [sys.executable, *(["-m"] if is_module else []), program, *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, environment(os.environ))


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """With weaver's start-up folder before whatever PYTHONPATH has."""
    others = [entry for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(STARTUP)]
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(STARTUP), *others])}
