"""What weaver knows of the base model that vLLM servers are to serve."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from weaver_peft.base_model import describe, resolved

from weaver.domain import ModelFacts, ModelSource


@dataclass(frozen=True, slots=True)
class Base:
    """`layers` are the linear ones by name: how many numbers go in, and how many come out."""

    source: ModelSource
    facts: ModelFacts
    layers: Mapping[str, tuple[int, int]]


def base_of(source: ModelSource) -> Base:
    """Without its weights. Raises InvalidInput for a model that cannot be read."""
    found = replace(source, location=resolved(source.location))
    facts = describe(found)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(found.location))
    linear = (each for each in model.named_modules() if type(each[1]) is torch.nn.Linear)
    return Base(found, facts, {name: (module.in_features, module.out_features) for name, module in linear})
