"""Base models: where one comes from, and what its configuration says."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OptionValue = int | bool | str | tuple[str, ...]
"""What a setting of a backend or a sampler can be."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model to load: `name` is what clients ask for and are told, `location` a folder or hub id.

    `device` is "auto", "cpu" or "cuda"; `dtype` is "auto" (the checkpoint's own), "float32" or "bfloat16". A backend or
    sampler finds in `options` every option that its factory declares, defaults filled in.
    """

    name: str
    location: str
    device: str = "auto"
    dtype: str = "auto"
    options: Mapping[str, OptionValue] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a base model from its configuration alone, without loading weights."""

    name: str
    architecture: str
    vocabulary_size: int
    context_length: int
    end_token_ids: tuple[int, ...]
    tokenizer_location: str
