"""What weaver knows of the base model that vLLM servers are to serve."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from weaver_peft.base_model import describe, resolved

from weaver.domain import ModelFacts, ModelSource


@dataclass(frozen=True, slots=True)
class Base:
    """`layers` are the linear ones by name: how many numbers go in, and how many come out. `tokenizers_ends`: the end
    token that its tokenizer names."""

    source: ModelSource
    facts: ModelFacts
    layers: Mapping[str, tuple[int, int]]
    tokenizers_ends: frozenset[int]


def base_of(source: ModelSource) -> Base:
    """Without its weights. Raises InvalidInput for a model that cannot be read."""
    found = replace(source, location=resolved(source.location))
    facts = describe(found)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(found.location))
    linear = (each for each in model.named_modules() if type(each[1]) is torch.nn.Linear)
    layers = {name: (module.in_features, module.out_features) for name, module in linear}
    return Base(found, facts, layers, _tokenizers_ends(found.location))


def _tokenizers_ends(location: str) -> frozenset[int]:
    """Where files are missing, transformers makes a tokenizer up, and a server has none."""
    try:
        found = AutoTokenizer.from_pretrained(location).eos_token_id
    except (OSError, ValueError, KeyError):
        return frozenset()
    return frozenset(() if found is None else (int(found),))
