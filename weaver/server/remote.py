"""The server that a command asks, through weaver's own client: where it is, and how its refusals are told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from weaver.client.errors import WeaverAPIError
from weaver.config import client_setting
from weaver.server.printed import Json

if TYPE_CHECKING:
    from weaver.client.operations import OperationHandle
    from weaver.client.service_client import ServiceClient
    from weaver.client.training_client import TrainingClient
    from weaver.types import Deployment, WeightsArtifact

_UNAUTHORIZED: Final = 401
_NO_ANSWER: Final = "transport_unavailable"


@dataclass(frozen=True, slots=True)
class Server:
    """As the command line names it."""

    base_url: str | None
    api_key: str | None

    @contextmanager
    def client(self, organization_id: str | None = None) -> Iterator["ServiceClient"]:
        """A connected client. What it asks for without waiting goes on when it is gone.

        Raises UsageError where no server is named: the service that clients start in their own process ends with
        them, so a command would only ever see an empty one.
        """
        url = self.base_url or client_setting("WEAVER_BASE_URL")
        if url is None:
            raise click.UsageError("which server? give --base-url http://..., or set WEAVER_BASE_URL")
        if not url.startswith(("http://", "https://")):
            raise click.UsageError(f"--base-url {url!r} must begin with http:// or https://")
        clients: Any = import_module("weaver.client.service_client")  # only for commands that ask a server
        made: ServiceClient = clients.ServiceClient(base_url=url, api_key=self.api_key, organization_id=organization_id)
        try:
            made._reach()
            yield made
        except WeaverAPIError as error:
            raise click.ClickException(_told(error, url)) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        finally:
            made._end(waits=False)


def trainer_of(service: "ServiceClient", model_id: str) -> "TrainingClient":
    """A client of a model that is there, for what is asked about its checkpoints."""
    clients: Any = import_module("weaver.client.training_client")
    made: TrainingClient = clients.TrainingClient(service=service, model_id=model_id, base_model="", session_id="")
    return made


def waited(handle: "OperationHandle", read: "Callable[[Any], Deployment | WeightsArtifact]", *, no_wait: bool) -> Json:
    """What an operation gave, as JSON has it; with `no_wait`, which operation it is."""
    if no_wait:
        return {"operation_id": handle.operation_id, "status": handle.status}
    if not handle.done():
        click.echo(f"waiting for operation {handle.operation_id}", err=True)
    return asdict(read(handle.result()))


def asks_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server, and the Server as its first argument."""

    @click.option("--base-url", metavar="URL", help="The server to ask. Without: WEAVER_BASE_URL.")
    @click.option("--api-key", metavar="KEY", help="The key to show it. Without: WEAVER_API_KEY.")
    @wraps(command)
    def asking(base_url: str | None, api_key: str | None, **given: object) -> None:
        command(Server(base_url, api_key), **given)

    return asking


def _told(error: WeaverAPIError, url: str) -> str:
    """What was refused, and by which name to look for it in the server's log."""
    if error.code == _NO_ANSWER:
        return f"no answer from {url}: {error.message}"
    known = [error.code, f"HTTP {error.status_code}", *([f"request {error.request_id}"] if error.request_id else [])]
    advice = "; give --api-key, or set WEAVER_API_KEY" if error.status_code == _UNAUTHORIZED else ""
    return f"{error.message}{advice} ({', '.join(known)})"
