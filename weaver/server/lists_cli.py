"""What a server has: `weaver list`, `weaver show`, `weaver organizations`, `weaver projects` and `weaver scope`."""

from collections.abc import Callable
from typing import Final

import click

from weaver.server.printed import (
    Columns,
    Json,
    detail_format,
    field,
    output_format,
    print_detail,
    print_json,
    print_records,
    print_table,
)
from weaver.server.remote import Server, asks_server
from weaver.types import SupportedModelPrice

_MODES: Final = {"all": None, "lora": "lora", "full-ft": "full_ft"}
_PRICES: Final = {
    "train": "training_tokens",
    "input": "sampling_prefill_tokens",
    "cached input": "sampling_cached_prefill_tokens",
    "output": "sampling_output_tokens",
}
_organization_id = click.option("--organization-id", "--org-id", help="The organization's id.")
_organization = click.option("--organization", help="The organization's id, short name or name.")


def _training_mode(model: Json) -> object:
    rank = (model.get("lora_config") or {}).get("rank")
    mode = model.get("training_mode")
    return mode if rank is None else f"{mode} (rank={rank})"


_RUNS: Final[Columns] = {
    "id": field("id"),
    "base model": field("base_model"),
    "mode": _training_mode,
    "status": field("status"),
    "last request": field("last_request_at"),
}
_MODELS: Final[Columns] = {
    "id": field("id"),
    "session": field("session_id"),
    "base model": field("base_model"),
    "mode": _training_mode,
    "status": field("status"),
    "last number": field("last_seq_id"),
    "created": field("created_at"),
}
_CHECKPOINTS: Final[Columns] = {
    "path": field("path"),
    "type": field("checkpoint_type"),
    "created": field("created_at"),
    "expires": field("expires_at"),
}
_NAMED: Final[Columns] = {name: field(name) for name in ("id", "name", "role")}


@click.group("list")
def listing() -> None:
    """List what a server has."""


@click.group()
def show() -> None:
    """Show what a server knows of one model or run."""


def _paged(command: Callable[..., None]) -> Callable[..., None]:
    limit = click.option("-l", "--limit", default=25, show_default=True, help="How many to list.")
    offset = click.option("-o", "--offset", default=0, show_default=True, help="How many to leave out before them.")
    return limit(offset(output_format(asks_server(command))))


def _print_page(page: Json, columns: Columns, shape: str) -> None:
    if shape == "json":
        print_json(page)
        return
    print_records(page["items"], columns)
    told = page.get("pagination") or {}
    click.echo(f"\n{len(page['items'])} of {told.get('total_count')}, after {told.get('offset')}")


@listing.command("training-runs")
@_paged
def training_runs(server: Server, limit: int, offset: int, shape: str) -> None:
    """List training runs, the newest first."""
    with server.client() as service:
        _print_page(service.list_training_runs(limit=limit, offset=offset), _RUNS, shape)


@listing.command("models")
@_paged
def models(server: Server, limit: int, offset: int, shape: str) -> None:
    """List models that are or were trained, the newest first."""
    with server.client() as service:
        _print_page(service.list_models(limit=limit, offset=offset), _MODELS, shape)


@listing.command("supported-models")
@click.option("--mode", type=click.Choice(list(_MODES)), default="all", show_default=True, help="How to be trained.")
@click.option(
    "-f", "--format", "shape", type=click.Choice(["table", "json", "names"]), default="table", show_default=True
)
@_organization_id
@asks_server
def supported_models(server: Server, mode: str, shape: str, organization_id: str | None) -> None:
    """List base models that can be trained, in which modes, and their prices."""
    chosen = _MODES[mode]
    with server.client(organization_id) as service:
        found = service.list_supported_model_details()
    offered = [one for one in found if chosen is None or one.training_mode(chosen) is not None]
    if shape == "json":
        print_json([one.to_dict(mode=chosen) for one in offered])
    elif shape == "names":
        click.echo("".join(f"{one.name}\n" for one in offered), nl=False)
    else:
        rows = [
            (model.name, way.display_name, *(_price(way.price_for(kind)) for kind in _PRICES.values()))
            for model in offered
            for way in model.training_modes
            if chosen in (None, way.mode)
        ]
        print_table(["model", "mode", *_PRICES], rows)


def _price(price: SupportedModelPrice | None) -> str | None:
    return None if price is None else f"${price.unit_price_usd} / {price.unit}"


def _print_named(records: list[Json], shape: str) -> None:
    """Of organizations and projects, what their users need."""
    named = [
        {
            "id": str(one["id"]),
            "name": str(one.get("name") or ""),
            "role": str(one.get("role") or one.get("current_user_role") or ""),
        }
        for one in records
    ]
    if shape == "json":
        print_json(named)
    else:
        print_records(named, _NAMED)


@listing.command("organizations")
@output_format
@asks_server
def organizations(server: Server, shape: str) -> None:
    """List the organizations that the key's user belongs to."""
    with server.client() as service:
        _print_named(service.list_organizations(), shape)


@listing.command("projects")
@_organization_id
@_organization
@output_format
@asks_server
def projects(server: Server, organization_id: str | None, organization: str | None, shape: str) -> None:
    """List an organization's projects. Without a name: those of the organization that is used then."""
    if organization_id and organization:
        raise click.UsageError("--organization-id and --organization name the same thing: give one of them")
    with server.client() as service:
        if organization:
            organization_id = service.resolve_scope(organization=organization)["organization"]["id"]
        _print_named(service.list_projects(organization_id), shape)


@show.command("training-run")
@click.argument("run_id")
@detail_format
@asks_server
def training_run(server: Server, run_id: str, shape: str) -> None:
    """Show a training run and its checkpoints."""
    with server.client() as service:
        found = service.get_training_run(run_id)
    if shape == "json":
        print_json(found)
        return
    checkpoints = found.get("checkpoints") or []
    print_detail({name: value for name, value in found.items() if name != "checkpoints"})
    click.echo(f"checkpoints: {len(checkpoints)}")
    if checkpoints:
        print_records(checkpoints, _CHECKPOINTS)


@show.command("model")
@click.argument("model_id")
@detail_format
@asks_server
def model(server: Server, model_id: str, shape: str) -> None:
    """Show a model."""
    with server.client() as service:
        found = service.get_model(model_id)
    (print_json if shape == "json" else print_detail)(found)


@click.group("organizations")
def organizations_group() -> None:
    """Organizations of the key's user."""


@click.group("projects")
def projects_group() -> None:
    """Projects of an organization."""


@click.group()
def scope() -> None:
    """What names of organizations and projects mean."""


@scope.command()
@_organization
@click.option("--project", help="The project's id, short name or name.")
@asks_server
def resolve(server: Server, organization: str | None, project: str | None) -> None:
    """Print the organization and the project that these names mean, as JSON."""
    with server.client() as service:
        print_json(service.resolve_scope(organization, project))


organizations_group.add_command(organizations, "list")
projects_group.add_command(projects, "list")
