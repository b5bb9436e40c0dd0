"""`weaver adapter`: adapters into a data directory and out of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from weaver.adapter_folders import describe_adapter, read_adapter
from weaver.backend import BackendFactory, ModelSource
from weaver.checkpoints import write_beside, write_export
from weaver.config import default_data_dir, disabled_plugins
from weaver.domain import Adapter, ModelState
from weaver.errors import AlreadyExists, InvalidInput, WeaverError
from weaver.registry import load_registry
from weaver.server.model_sources import model_sources
from weaver.service.adapter_shelf import AdapterShelf
from weaver.workers import open_backend

_MODEL = "The base model. Without: the demo model."
_folder = click.Path(file_okay=False, path_type=Path)
_existing_folder = click.Path(file_okay=False, exists=True, path_type=Path)
_data_dir = click.option("--data-dir", type=_folder, help="Where checkpoints are kept.")
_backend = click.option("--backend", "backend", default="peft", show_default=True, help="The training backend.")


@click.group()
def adapter() -> None:
    """Take adapters in, out, or into their base model."""


@adapter.command("import")
@click.argument("folder", type=_existing_folder)
@click.option("--model", metavar="NAME[=HUB_ID_OR_FOLDER]", help=f"{_MODEL} NAME is what clients know it by.")
@click.option("--name", help="The checkpoint's name. Without: the folder's.")
@_data_dir
@_backend
def import_adapter(folder: Path, model: str | None, name: str | None, data_dir: Path | None, backend: str) -> None:
    """Put the PEFT adapter in FOLDER among the checkpoints, as a state to train from and as a snapshot to sample from,
    and print their paths. The base model is loaded once, to check that the adapter fits."""
    with _told(), _shelf(data_dir, create=True) as shelf:
        describe_adapter(folder)  # before the base model is loaded
        [source] = model_sources((model,) if model else (), "cpu", "auto")
        fitted = _fitted(load_registry(disabled_plugins()).backend(backend), source, folder)
        for path in shelf.put(fitted, name or folder.resolve().name, folder.resolve()):
            click.echo(path)


@adapter.command("export")
@click.argument("path")
@click.argument("out", type=_folder)
@_data_dir
def export_adapter(path: str, out: Path, data_dir: Path | None) -> None:
    """Write the adapter of PATH (tinker://...) as a PEFT folder OUT, which must not be there yet."""
    with _told():
        _check_free(out)
        with _shelf(data_dir, create=False) as shelf:
            write_export(out, ModelState(shelf.take(path), None), seal=None)


@adapter.command("merge")
@click.argument("path")
@click.argument("out", type=_folder)
@click.option("--model", metavar="NAME[=HUB_ID_OR_FOLDER]", help=_MODEL)
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]))
@_data_dir
@_backend
def merge_adapter(path: str, out: Path, model: str | None, dtype: str, data_dir: Path | None, backend: str) -> None:
    """Write the base model with the adapter of PATH (tinker://..., or a PEFT folder) added to its weights as a Hugging
    Face folder OUT, which must not be there yet. Computed in float32; `--dtype auto` keeps the base model's."""
    with _told():
        _check_free(out)
        [source] = model_sources((model,) if model else (), "cpu", dtype)
        found = _adapter_of(path, source, data_dir)
        factory = load_registry(disabled_plugins()).backend(backend)
        write_beside(out, partial(factory.merge, source, found))


def _fitted(factory: BackendFactory, source: ModelSource, folder: Path) -> Adapter:
    """The adapter as the backend holds it: what it cannot train on this model it refuses."""
    state = ModelState(read_adapter(folder, source.name), None)
    opened = open_backend(factory, replace(source, options=factory.effective_options({})), disabled_plugins())
    try:
        opened.create_model("import", state.adapter.lora)
        opened.import_state("import", state)
        return opened.export_state("import", optimizer=False).adapter
    finally:
        opened.close()


def _adapter_of(path: str, source: ModelSource, data_dir: Path | None) -> Adapter:
    if "://" not in path:
        return read_adapter(Path(path), source.name)
    with _shelf(data_dir, create=False) as shelf:
        found = shelf.take(path)
    if source.name != found.base_model and not Path(source.name).is_dir():
        raise InvalidInput(
            f"{path} was trained on {found.base_model!r}, not on {source.name!r}; "
            f"give --model {found.base_model}=HUB_ID_OR_FOLDER"
        )
    return replace(found, base_model=source.name)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(f"{out} is there already and not empty; nothing was written")


@contextmanager
def _shelf(data_dir: Path | None, *, create: bool) -> Iterator[AdapterShelf]:
    shelf = AdapterShelf(data_dir or default_data_dir(), create=create)
    try:
        yield shelf
    finally:
        shelf.close()


@contextmanager
def _told() -> Iterator[None]:
    """Errors as the command line tells them."""
    try:
        yield
    except WeaverError as error:
        raise click.ClickException(str(error)) from error
