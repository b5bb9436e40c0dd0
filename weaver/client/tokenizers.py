"""Where a model's tokenizer comes from."""

from typing import Any

from weaver.compat.tinker.lib import tokenizers


def tokenizer_of(path: str | None, base_model: str) -> Any:
    """From where the service says, or from the hub by the model's name. It runs no code of the model's."""
    return tokenizers.load(path or tokenizers.hub_name(base_model))
