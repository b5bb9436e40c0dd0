"""Which credential a client shows a server, found where Tinker's SDK looks for one."""

import base64
import json
import math
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from weaver import config
from weaver.compat.tinker.exceptions import TinkerError


@dataclass(frozen=True, slots=True)
class KeyCredential:
    """A key, or a token that somebody made of one. Raises TinkerError for another beginning than theirs, and ValueError
    for a token that does not say when it expires."""

    key: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.key.startswith(("tml-", "eyJ")):
            raise TinkerError(
                "The api_key must start with the 'tml-' prefix; any text may follow on a server of your own"
            )
        _expiry(self.key)

    def token(self) -> str:
        """What to send. Raises TinkerError once it has expired."""
        if time.time() >= _expiry(self.key):
            raise TinkerError("The api_key is a token that has expired; pass a fresh one, or set TINKER_CREDENTIAL_CMD")
        return self.key


@dataclass(frozen=True, slots=True)
class CommandCredential:
    """A command that prints a credential each time one is needed."""

    command: str

    def __post_init__(self) -> None:
        if not self.command:
            raise TinkerError("the server wants short-lived credentials: set TINKER_CREDENTIAL_CMD to what prints one")

    def token(self) -> str:
        """Run the command. Raises TinkerError when it prints nothing, or something that has expired."""
        printed = subprocess.run(self.command, shell=True, capture_output=True, text=True, check=False)
        credential = printed.stdout.strip()
        if not credential:
            raise TinkerError(f"TINKER_CREDENTIAL_CMD printed nothing and ended with status {printed.returncode}")
        if time.time() >= _expiry(credential):
            raise TinkerError("TINKER_CREDENTIAL_CMD printed a token that has expired")
        return credential


def resolve(api_key: str | None = None, *, enforce_command: bool = False) -> KeyCredential | CommandCredential:
    """The argument, else TINKER_API_KEY, else TINKER_CREDENTIAL_CMD, else what is stored; with `enforce_command` only a
    token goes before the command. Raises TinkerError when there is nothing."""
    given = api_key or config.client_setting("TINKER_API_KEY")
    command = config.client_setting("TINKER_CREDENTIAL_CMD")
    if given and given.startswith("eyJ"):
        return KeyCredential(given)
    # A key that cannot be one gives way to the command, but never silently to another key.
    if enforce_command or (command and not (given and given.startswith("tml-"))):
        return CommandCredential(command or "")
    found = KeyCredential(given) if given else stored()
    if found is None:
        raise TinkerError(
            "The api_key client option must be set by passing api_key to the client, or by setting the TINKER_API_KEY "
            "environment variable (any text after 'tml-' where the server asks for no particular key)"
        )
    return found


def given_or_stored() -> KeyCredential | None:
    """TINKER_API_KEY, else what is stored; runs no command."""
    key = config.client_setting("TINKER_API_KEY")
    return KeyCredential(key) if key else stored()


def stored(path: Path | None = None) -> KeyCredential | None:
    """The default key of `~/.tinker/credentials.json`, where the vendor's command stores it; None if there is none.
    Raises ValueError for a file of another form."""
    try:
        text = (path or Path("~/.tinker/credentials.json").expanduser()).read_text()
    except FileNotFoundError:
        return None
    credentials = _Stored.model_validate_json(text)
    if credentials.default not in credentials.keys:
        return None
    return KeyCredential(credentials.keys[credentials.default].key)


class _StoredKey(BaseModel):
    type: Literal["manual", "generated"]
    key: str
    name: str


class _Stored(BaseModel):
    version: Literal[1] = 1
    default: str | None = None
    keys: dict[str | None, _StoredKey] = Field(default_factory=dict)


def _expiry(credential: str) -> float:
    """When a token expires, in seconds since 1970; a plain key never does. Raises ValueError for a broken token."""
    if not credential.startswith("eyJ"):
        return math.inf
    try:
        payload = credential.split(".")[1]
        padded = payload + "=" * (-len(payload) % 4)
        return float(json.loads(base64.urlsafe_b64decode(padded))["exp"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError("the api_key begins like a token (eyJ) but does not say when it expires") from error
