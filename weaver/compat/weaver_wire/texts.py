"""Tokens as text, by the served model's own tokenizer; special tokens are kept."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from weaver.compat.hub.files import folder_of
from weaver.compat.tinker.lib.tokenizers import load

logger = logging.getLogger(__name__)


def decode(location: str, tokens: Sequence[int]) -> str:
    """Empty where the server has no tokenizer for the model. The first call loads it, which may take seconds."""
    tokenizer = _tokenizer(location)
    return "" if tokenizer is None else str(tokenizer.decode(tokens, skip_special_tokens=False))


def tokenizer_path(location: str, name: str, *, is_local: bool) -> str:
    """What a client loads the tokenizer from: the folder where it can read it, else a name of the hub.

    A client elsewhere finds the name of a folder's model at this server, with HF_ENDPOINT.
    """
    folder = folder_of(location) if location.startswith(("/", ".")) else None
    if folder is None:
        return location
    return str(folder) if is_local else name


@lru_cache(maxsize=32)
def _tokenizer(location: str) -> Any:
    folder = folder_of(location)
    if folder is None:
        return None
    try:
        return load(str(folder))
    except (ImportError, OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("there is no tokenizer in %s, so samples have no text: %s", folder, error)
        return None
