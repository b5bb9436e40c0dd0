"""An adapter added to its base model's weights: a Hugging Face folder like any other.

W + scale · B·A in float32, rounded once to the dtype it is saved in.
"""

import shutil
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from weaver.domain import Adapter, ModelSource, ModelState
from weaver.errors import InvalidInput
from weaver_peft.base_model import BaseModel, adapted_modules, describe, resolved
from weaver_peft.training_model import TrainingModel

_COPIED: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "tiktoken.model",
    "generation_config.json",
)  # fmt: skip


def merge(source: ModelSource, adapter: Adapter, folder: Path) -> None:
    """Write the merged model and its tokenizer into `folder`, which is empty. `source.dtype` "auto" keeps the dtypes of
    the base model. Raises InvalidInput where the adapter does not fit."""
    facts, location = describe(source), resolved(source.location)
    if getattr(AutoConfig.from_pretrained(location), "quantization_config", None) is not None:
        raise InvalidInput(f"the model {source.name!r} is quantized; merge into the weights it was made from")
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(location, dtype="auto").requires_grad_(False)
    trained = TrainingModel(BaseModel(facts, model, adapted_modules(model), torch.device("cpu")), adapter.lora)
    trained.load(ModelState(adapter, None))
    dtype = None if source.dtype == "auto" else getattr(torch, source.dtype)
    _give_head_its_own_weight(model, {*trained.pairs})
    with torch.no_grad():
        for name, pair in trained.pairs.items():
            linear = model.get_submodule(name)
            merged = linear.weight.float() + pair.scale * (pair.b @ pair.a)
            linear.weight = nn.Parameter(merged.to(dtype or linear.weight.dtype), requires_grad=False)
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the base model's file is copied below
    model.to(dtype or model.dtype).save_pretrained(folder)
    _copy_beside(location, folder)


def _give_head_its_own_weight(model: PreTrainedModel, adapted: set[str]) -> None:
    """An adapter of the output layer leaves the embeddings alone, which many models share with it."""
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    if name in adapted and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _copy_beside(location: str, folder: Path) -> None:
    """Tokenizer and generation settings, as they are."""
    for name in _COPIED:
        found = cached_file(location, name, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            shutil.copyfile(found, folder / name)
