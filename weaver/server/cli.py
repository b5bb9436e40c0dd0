"""The command `weaver`."""

import ipaddress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
from pydantic import ValidationError

from weaver import __version__
from weaver.config import Config, default_data_dir, disabled_plugins, prepare_threads, strict_plugins
from weaver.domain import OptionValue
from weaver.errors import InvalidInput, WeaverError
from weaver.server.adapter_cli import adapter
from weaver.server.checkpoint_cli import checkpoint
from weaver.server.deployment_cli import deployment
from weaver.server.lists_cli import listing, organizations_group, projects_group, scope, show
from weaver.server.model_sources import model_sources
from weaver.server.option_flags import ServeCommand, given_options
from weaver.server.plugins_cli import plugins
from weaver.server.run_cli import run
from weaver.server.serve import serve as run_server
from weaver.server.workbench_cli import workbench

_KEY_PREFIX = "tml-"


@click.group()
@click.version_option(__version__, prog_name="weaver")
def weaver() -> None:
    """Fine-tune language models with your own loop, on your own machines."""


for _command in (
    adapter, run, plugins,
    listing, show, organizations_group, projects_group, scope, checkpoint, deployment,
):  # fmt: skip
    weaver.add_command(_command)


@weaver.command(cls=ServeCommand)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[=HUB_ID_OR_FOLDER]",
    help="A model to serve under NAME; repeatable. Without any: the demo model.",
)
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where checkpoints are kept.")
@click.option("--backend", default="peft", show_default=True, help="The training backend.")
@click.option(
    "--backend-option",
    "backend_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the backend's own; repeatable. Those at the end of this list are such ones.",
)
@click.option("--sampler", default="embedded", show_default=True, help="The sampler.")
@click.option(
    "--sampler-option",
    "sampler_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the sampler's own; repeatable. They too are at the end of this list.",
)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--api-key", "api_keys", multiple=True, metavar="KEY", help="A key clients must show; repeatable.")
@click.option(
    "--import-dir",
    "import_dirs",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory below which clients may name PEFT adapters to train from, as file:/...; repeatable.",
)
@click.option(
    "--checkpoint-store",
    metavar="URL",
    help="Where saved checkpoints are kept, like s3://bucket/prefix. Without: DATA_DIR.",
)
@click.option(
    "--lease-seconds",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long a session lives that nothing is heard of.",
)
@click.option(
    "--mismatch-share",
    default=0.25,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Of how many sampled sequences the sampler's logprobs are compared with the trainer's.",
)
@click.option(
    "--mismatch-warning",
    default=0.1,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Warn when they differ by more nats on average.",
)
def serve(
    host: str,
    port: int,
    models: tuple[str, ...],
    data_dir: Path | None,
    backend: str,
    backend_options: tuple[str, ...],
    sampler: str,
    sampler_options: tuple[str, ...],
    device: str,
    dtype: str,
    api_keys: tuple[str, ...],
    import_dirs: tuple[Path, ...],
    checkpoint_store: str | None,
    lease_seconds: float,
    mismatch_share: float,
    mismatch_warning: float,
    **flags: OptionValue | None,
) -> None:
    """Train and sample for Tinker's SDK. Prints one line with the URL when ready."""
    try:
        check_keys(host, api_keys)
        config = Config(
            models=model_sources(models, device, dtype),
            data_dir=data_dir or default_data_dir(),
            backend=backend,
            backend_options=given_options("backend", backend_options, flags),
            sampler=sampler,
            sampler_options=given_options("sampler", sampler_options, flags),
            api_keys=api_keys,
            import_dirs=import_dirs,
            checkpoint_store=checkpoint_store,
            lease_seconds=lease_seconds,
            mismatch_share=mismatch_share,
            mismatch_warning=mismatch_warning,
            disabled_plugins=disabled_plugins(),
            strict_plugins=strict_plugins(),
        )
        run_server(config, host, port, click.echo)
    except (WeaverError, ValidationError) as error:
        raise click.ClickException(str(error)) from error


def check_keys(host: str, api_keys: tuple[str, ...]) -> None:
    """Raise InvalidInput for a key the SDK would not send, or where strangers could come in without one."""
    for position, key in enumerate(api_keys, start=1):
        if not key.startswith(_KEY_PREFIX):
            raise InvalidInput(
                f"--api-key number {position} must begin with {_KEY_PREFIX!r}: Tinker's SDK sends no other"
            )
    if not api_keys and not is_loopback(host):
        raise InvalidInput(f"--host {host} lets other machines in: give --api-key {_KEY_PREFIX}..., or use 127.0.0.1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than localhost could be anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@weaver.command()
@click.argument("url", required=False)
@click.option("--model", help="The base model to check on. Without: the first that the server can train.")
@click.option("--api-key", default="tml-conformance", envvar="TINKER_API_KEY", help="The key to show the server.")
@click.option("--only", multiple=True, metavar="NAME", help="A check or a group to run; repeatable.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option("--list", "listing", is_flag=True, help="Print the checks instead of running them.")
def conformance(
    url: str | None, model: str | None, api_key: str, only: tuple[str, ...], json_file: Path | None, listing: bool
) -> None:
    """Check any server that speaks Tinker's protocol, through the installed tinker SDK. Status 1 when a check fails."""
    command = _conformance()
    if listing:
        command.list_checks()
    elif url is None:
        raise click.UsageError("give the URL of the server to check, or --list")
    else:
        try:
            passed = command.conformance(url, model=model, api_key=api_key, only=only, json_file=json_file)
        except command.Unusable as error:
            raise click.ClickException(str(error)) from error
        if not passed:
            raise SystemExit(1)


def _conformance() -> ModuleType:
    """The checks need the vendor's SDK, which nothing else of weaver does."""
    try:
        return import_module("weaver.conformance.command")
    except ModuleNotFoundError as error:
        if error.name != "tinker":
            raise
        raise click.ClickException("the conformance checks run through Tinker's SDK: pip install tinker") from error


weaver.add_command(workbench)


def main() -> None:
    """The entry point of the command. Threads are prepared first: torch reads the setting when it is imported."""
    prepare_threads()
    weaver()


if __name__ == "__main__":
    main()
