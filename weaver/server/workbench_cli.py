"""The command `weaver workbench`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from weaver.backend import ModelSource
from weaver.config import disabled_plugins
from weaver.errors import WeaverError
from weaver.registry import load_registry
from weaver.server.workbench import SETTINGS, Written, parse_alias, write_settings, write_workbench

ENVIRONMENT: Final = {
    "TINKER_BASE_URL": "http://127.0.0.1:8000",
    "TINKER_API_KEY": "tml-local",
    "TINKER_TELEMETRY": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    required=True,
    metavar="ORG/NAME=FOLDER",
    help="A name that recipes use and the model that stands for it; repeatable. The folder 'demo' is the demo model.",
)
@click.option("--backend", default="peft", show_default=True, help="The training backend that will load the models.")
def workbench(directory: Path, aliases: tuple[str, ...], backend: str) -> None:
    """Write the folder DIR, from which the tinker-cookbook's recipes run without a model hub."""
    try:
        describe = load_registry(disabled_plugins()).backend(backend).describe
        parsed = [
            parse_alias(given, lambda name, location: describe(ModelSource(name, location)).tokenizer_location)
            for given in aliases
        ]
        written = [write_workbench(directory, alias) for alias in parsed]
    except WeaverError as error:
        raise click.ClickException(str(error)) from error
    in_process = _in_process(directory, write_settings(directory))
    click.echo("\n".join([*map(_said, written), "", *_instructions(directory, written), *in_process]))


def _said(written: Written) -> str:
    lines = [f"{written.folder}: tokenizer and configuration copied from {written.alias.folder}"]
    if written.linked:
        lines[0] += f", {written.linked} other file{'s' if written.linked > 1 else ''} linked"
    for token, name in written.renamed.items():
        lines.append(f"  its renderer needs {name} as one token: in this copy the unused {token} is called so")
    return "\n".join(lines)


def _instructions(directory: Path, written: Sequence[Written]) -> list[str]:
    models = [f"--model {shlex.quote(f'{one.alias.name}={one.location}')}" for one in written]
    variables = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return [
        "Serve them:",
        f"  weaver serve {' '.join(models)}",
        "and run recipes from the workbench, where datasets are found too, as ORG/NAME folders:",
        f"  cd {shlex.quote(str(directory))}",
        f"  export {variables}",
        "  python -m tinker_cookbook.recipes...",
    ]


def _in_process(directory: Path, settings: bool) -> list[str]:
    if not settings:
        return [f"Without a server: name the models in {directory / SETTINGS}, which is not of this command and stays."]
    return [
        "Without a server, in the same folder and without TINKER_BASE_URL:",
        "  weaver run -m tinker_cookbook.recipes...",
    ]
