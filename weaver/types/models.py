"""Base models: where one comes from, and what its configuration says."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model to load: `name` is what clients ask for and are told, `location` a folder or hub id.

    `device` is "auto", "cpu" or "cuda"; `dtype` is "auto" (the checkpoint's own), "float32" or "bfloat16".
    """

    name: str
    location: str
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a base model from its configuration alone, without loading weights."""

    name: str
    architecture: str
    vocabulary_size: int
    context_length: int
    end_token_ids: tuple[int, ...]
    tokenizer_location: str
