"""`weaver checkpoint`: lifetimes, exports and downloads of a server's checkpoints."""

from dataclasses import asdict
from pathlib import Path

import click

from weaver.client.references import KINDS, model_of
from weaver.server.printed import print_json
from weaver.server.remote import Server, asks_server, trainer_of, waited
from weaver.types import WeightsArtifact


@click.group()
def checkpoint() -> None:
    """Keep, export and download a server's checkpoints."""


@checkpoint.command("set-ttl")
@click.argument("model_id")
@click.argument("path")
@click.argument("seconds", required=False, type=int)
@click.option("--remove", is_flag=True, help="Keep it until it is deleted, instead of SECONDS.")
@asks_server
def set_ttl(server: Server, model_id: str, path: str, seconds: int | None, remove: bool) -> None:
    """Let the checkpoint PATH (weaver://...) of the model MODEL_ID expire in SECONDS from now."""
    if remove == (seconds is not None):
        raise click.UsageError("give either SECONDS or --remove")
    with server.client() as service:
        trainer_of(service, model_id).set_checkpoint_ttl(path, seconds)
    click.echo(f"{path} is kept until it is deleted" if remove else f"{path} expires in {seconds} seconds")


@checkpoint.command()
@click.argument("target")
@click.option("--merge-adapter", is_flag=True, help="A whole model, with the adapter added to its weights.")
@click.option("--ttl", "ttl_seconds", type=int, default=604_800, show_default=True, help="Seconds to keep it for.")
@click.option("--force", is_flag=True, help="Make it anew if it is there already.")
@click.option("--no-wait", is_flag=True, help="Do not wait for it, and print the operation.")
@asks_server
def export(server: Server, target: str, merge_adapter: bool, ttl_seconds: int, force: bool, no_wait: bool) -> None:
    """Make a downloadable artifact in Hugging Face's format of TARGET, a checkpoint's weaver:// path or its id, and
    print it as JSON. Without --merge-adapter: a PEFT adapter."""
    with server.client() as service:
        made = trainer_of(service, model_of(target) or "").export_weights(
            checkpoint=target, merge_adapter=merge_adapter, ttl_seconds=ttl_seconds, force=force, wait=False
        )
        is_there = isinstance(made, WeightsArtifact)
        print_json(asdict(made) if is_there else waited(made, WeightsArtifact.from_payload, no_wait=no_wait))


@checkpoint.command()
@click.argument("uri")
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to write into."
)
@click.option("--kind", type=click.Choice(KINDS), help="Which artifact, where a checkpoint has both.")
@asks_server
def download(server: Server, uri: str, output: Path, kind: str | None) -> None:
    """Fetch an artifact, named by its weaver:// URI or id, or by its checkpoint's URI, into a folder.

    What is there already is not fetched again, and a download that was cut short goes on."""
    with server.client() as service:
        click.echo(service.download_weights(uri, output, kind=kind))
