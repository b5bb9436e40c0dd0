"""`weaver deployment`: checkpoints under model names of their own at a server's OpenAI-compatible endpoint."""

from dataclasses import asdict
from typing import Any, Final

import click

from weaver.client.references import model_of
from weaver.server.printed import Columns, field, output_format, print_json, print_records
from weaver.server.remote import Server, asks_server, trainer_of, waited
from weaver.types import Deployment

_DEPLOYMENTS: Final[Columns] = {
    "id": field("id"),
    "name": field("name"),
    "status": field("status"),
    "endpoint": field("endpoint"),
    "gpu": field("gpu_type"),
    "replicas": field("replicas"),
    "created": field("created_at"),
}
_no_wait = click.option("--no-wait", is_flag=True, help="Do not wait for it, and print the operation.")


@click.group()
def deployment() -> None:
    """Offer checkpoints at a server's OpenAI-compatible endpoint."""


@deployment.command()
@click.argument("checkpoint_uri")
@click.option("--name", required=True, help="The model name it is asked for by.")
@click.option("--gpu-type", help="Where it is to run. Without: as the server likes.")
@click.option("--replicas", type=int, default=1, show_default=True, help="In how many copies.")
@click.option("--gpus-per-replica", type=int, help="On how many GPUs each. Without: as the server likes.")
@click.option("--overwrite", is_flag=True, help="Take the name from the deployment that has it.")
@_no_wait
@asks_server
def create(server: Server, checkpoint_uri: str, no_wait: bool, **settings: Any) -> None:
    """Deploy a checkpoint, named by its weaver:// path or its id, and print the deployment as JSON."""
    with server.client() as service:
        trainer = trainer_of(service, model_of(checkpoint_uri) or "")
        handle = trainer.deploy_checkpoint(checkpoint_uri, **settings, wait=False)
        print_json(waited(handle, Deployment.from_payload, no_wait=no_wait))


@deployment.command("list")
@output_format
@asks_server
def list_deployments(server: Server, shape: str) -> None:
    """List deployments, stopped ones too."""
    with server.client() as service:
        found = [asdict(one) for one in service.list_deployments()]
    if shape == "json":
        print_json(found)
    else:
        print_records(found, _DEPLOYMENTS)


@deployment.command()
@click.argument("deployment_id")
@asks_server
def get(server: Server, deployment_id: str) -> None:
    """Print a deployment as JSON."""
    with server.client() as service:
        print_json(asdict(service.get_deployment(deployment_id)))


@deployment.command()
@click.argument("deployment_id")
@_no_wait
@asks_server
def delete(server: Server, deployment_id: str, no_wait: bool) -> None:
    """Take a deployment down, give its name back, and print it as JSON."""
    with server.client() as service:
        print_json(
            waited(service.delete_deployment(deployment_id, wait=False), Deployment.from_payload, no_wait=no_wait)
        )
