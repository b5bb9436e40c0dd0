"""`weaver plugins`: what is installed, what it says of itself, and the beginning of a new one."""

from collections.abc import Iterator
from pathlib import Path

import click

from weaver.config import disabled_plugins, strict_plugins
from weaver.errors import WeaverError
from weaver.loss import ConfigField, Loss
from weaver.registry import KINDS, Registry, load_registry
from weaver.server.new_plugin import write_loss_package
from weaver.server.printed import print_table


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(context: click.Context) -> None:
    """Show installed plugins: packages, versions, hooks and names, and what failed and why."""
    if context.invoked_subcommand is None:
        registry = _registry()
        rows = [
            (loaded.package, loaded.version, hook, ", ".join(names))
            for loaded in registry.plugins
            for hook, names in (loaded.names.items() or {"none": ()}.items())
        ]
        print_table(["package", "version", "hook", "names"], rows)
        for name in sorted(disabled_plugins()):
            click.echo(f"left out by WEAVER_DISABLE_PLUGINS: {name}")
        for failed in registry.failed:
            click.echo(f"could not be imported: {failed.name}: {failed.reason}")


@plugins.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the record of the loss, backend, sampler ... NAME."""
    registry = _registry()
    try:
        found = registry.named(name)
    except WeaverError as error:
        raise click.ClickException(str(error)) from error
    for kind, record in found.items():
        click.echo(f"{kind} {name}: {record.description}")
        for line in _loss_lines(record) if isinstance(record, Loss) else _owner_lines(registry, kind, name):
            click.echo(f"  {line}")


@plugins.group()
def new() -> None:
    """Write the beginning of a plugin of one's own."""


@new.command("loss")
@click.argument("name")
@click.argument("directory", required=False, type=click.Path(file_okay=False, path_type=Path))
def new_loss(name: str, directory: Path | None) -> None:
    """Write a package that adds the loss NAME, with a test that passes, into DIRECTORY (without: ./weaver-NAME)."""
    try:
        written = write_loss_package(name, directory)
    except WeaverError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {written}; next:\n  pip install -e {written}\n  pytest {written}\n  weaver plugins show {name}")


def _registry() -> Registry:
    try:
        return load_registry(disabled_plugins(), strict=strict_plugins())
    except WeaverError as error:
        raise click.ClickException(str(error)) from error


def _owner_lines(registry: Registry, kind: str, name: str) -> Iterator[str]:
    hook = next(hook for hook, (of_kind, _) in KINDS.items() if of_kind == kind)
    for loaded in registry.plugins:
        if name in loaded.names.get(hook, ()):
            yield f"plugin: {loaded.name}"


def _loss_lines(loss: Loss) -> Iterator[str]:
    yield f"plugin: {loss.plugin}"
    if loss.source:
        yield f"source: {loss.source}"
    yield f"sees: {'the whole batch' if loss.batch else 'one datum at a time'}"
    yield f"targets: {' or '.join(('', '(T,)', '(T, K)')[rank] for rank in loss.target_ranks)}"
    if loss.forward_only:
        yield "gradient: none, for forward alone"
    if loss.sampling_masks:
        yield "sampling masks: data may have them"
    if loss.spellings:
        yield f"inputs in one spelling: {', or '.join(' and '.join(spelling) for spelling in loss.spellings)}"
    for one in loss.inputs:
        notes = ", optional" * one.optional + ", filled in by the server" * one.recorded
        yield f"input {one.name}: {one.dtype}, {_SHAPES[one.shape]}{notes}{_described(one.description)}"
    for field in loss.config:
        yield f"config {field.name}: {_range(field)}{_described(field.description)}"
    for output in loss.outputs:
        yield f"output {output.name}: float32, {_SHAPES[output.shape]}{_described(output.description)}"


_SHAPES = {
    "target": "per target, shaped like target_tokens",
    "token": "per token, (T,)",
    "table": "a row per token, (T, N)",
    "scalar": "one per sequence",
}


def _range(field: ConfigField) -> str:
    taken = " | ".join(field.choices) if field.type == "text" else field.range.removeprefix("from ")
    default = "must be given" if field.default is None else f"default {field.default}"
    default = "may be given" if field.optional else default
    return f"{field.type}, {taken}, {default}"


def _described(description: str) -> str:
    return f" -- {description}" if description else ""
