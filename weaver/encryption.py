"""Encryption of exported files to their readers' public keys, in the format age (https://age-encryption.org/v1)."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from weaver.errors import InvalidInput, MissingPackage

SUFFIX: Final = ".age"

Seal = Callable[[bytes], bytes]


def sealer(recipients: Sequence[str]) -> Seal:
    """What encrypts to these recipients: native keys (`age1...`) or SSH public keys.

    Raises InvalidInput naming one that cannot be read, MissingPackage without the package pyrage.
    """
    try:
        pyrage: Any = importlib.import_module("pyrage")
    except ImportError:
        raise MissingPackage("age_encryption_recipients needs pyrage: pip install 'weaver-train[age]'") from None
    keys = [_recipient(pyrage, text, f"age_encryption_recipients[{n}]") for n, text in enumerate(recipients)]
    return lambda data: bytes(pyrage.encrypt(data, keys))


def _recipient(pyrage: Any, text: str, name: str) -> Any:
    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise InvalidInput(f"{name} is no age or SSH public key: {error}") from None
