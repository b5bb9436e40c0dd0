"""Tokenizers of base models: from a folder, or from the hub by name."""

from functools import lru_cache
from importlib import import_module
from typing import Any


@lru_cache(maxsize=32)
def load(location: str) -> Any:
    """The tokenizer in a folder, or of a hub id."""
    automatic: Any = import_module("transformers").AutoTokenizer
    return automatic.from_pretrained(location, fast=True)


def hub_name(base_model: str) -> str:
    """The hub knows `organisation/model` of `organisation/model/variant` and of `organisation/model:variant`."""
    name = base_model.partition(":")[0]
    organisation, *rest = name.split("/")
    return name if len(rest) != 2 or not organisation else f"{organisation}/{rest[0]}"
