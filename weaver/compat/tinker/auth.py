"""`tinker.auth`: whether there is a credential, and whether it works."""

from typing import Final

import httpx

from weaver import config
from weaver.compat.tinker import credentials
from weaver.compat.tinker.exceptions import APIConnectionError, APITimeoutError, TinkerError, status_error

__all__ = ["get_tinker_token", "raise_if_tinker_not_accessible", "tinker_has_credentials"]

_SECONDS: Final = 60.0


def get_tinker_token() -> str | None:
    """The key that is set or stored, or None. Looks only at this machine and runs no command."""
    try:
        found = credentials.given_or_stored()
    except (OSError, TinkerError, ValueError):
        return None
    return None if found is None else found.key


def tinker_has_credentials() -> bool:
    """Whether a client would find a credential, without asking a server or running a command.

    Without TINKER_BASE_URL clients work in this process, which asks for none, so it is true.
    """
    if not config.client_setting("TINKER_BASE_URL"):
        return True
    try:
        credentials.resolve()
    except (OSError, TinkerError, ValueError):
        return False
    return True


def raise_if_tinker_not_accessible() -> None:
    """Ask the server at TINKER_BASE_URL once, and raise a TinkerError that says why it cannot be used, if so.

    Without TINKER_BASE_URL clients work in this process, which nothing keeps them from.
    """
    server = config.client_setting("TINKER_BASE_URL")
    if not server:
        return
    try:
        headers = {"X-API-Key": credentials.resolve().token()}
    except (OSError, ValueError) as error:
        raise TinkerError(str(error)) from error
    answer = _get(f"{server.rstrip('/')}/api/v1/get_server_capabilities", headers)
    if answer.is_error:
        raise status_error(answer.status_code, _body(answer), answer.request, answer)


def _get(url: str, headers: dict[str, str]) -> httpx.Response:
    try:
        return httpx.get(url, headers=headers, timeout=_SECONDS)
    except httpx.TimeoutException as error:
        raise APITimeoutError(error.request) from error
    except httpx.TransportError as error:
        raise APIConnectionError(error.request, f"{url} could not be reached: {error}") from error
    except httpx.InvalidURL as error:
        raise TinkerError(f"TINKER_BASE_URL is no address: {error}") from error


def _body(answer: httpx.Response) -> object:
    """As JSON where it is."""
    try:
        return answer.json()
    except ValueError:
        return answer.text
