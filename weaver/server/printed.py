"""How commands print: tables and records for people, JSON for programs."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
Columns = Mapping[str, Callable[[Json], object]]

_NOT_CUT: Final = 10_000
"""Columns of a table that goes into a file or a pipe."""

output_format = click.option(
    "-f", "--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True
)
detail_format = click.option(
    "-f", "--format", "shape", type=click.Choice(["detail", "json"]), default="detail", show_default=True
)


def print_json(value: object) -> None:
    """Alone on the standard output, so that a program can read it."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """What is too wide for a terminal goes on in the next line; elsewhere a row is a line. Nothing is left out."""
    console = Console(markup=False, emoji=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(width=None if console.is_terminal else _NOT_CUT, markup=False, emoji=False, highlight=False).print(table)


def print_records(records: Iterable[Json], columns: Columns) -> None:
    """A row for each."""
    print_table(columns, [[read(record) for read in columns.values()] for record in records])


def print_detail(record: Json) -> None:
    """A line for each field."""
    for name, value in record.items():
        click.echo(f"{name}: {_cell(value)}")


def field(name: str) -> Callable[[Json], object]:
    """Reads a field, where a record has it."""
    return lambda record: record.get(name)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)
