"""A frozen base model, loaded once per process and shared by the trainer and the sampler.

Shapes: T packed tokens, V vocabulary, H hidden size.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging

from weaver.backend import ModelFacts, ModelSource
from weaver.errors import InvalidInput
from weaver_peft.call import Call, Segment, current_call, forward_call
from weaver_peft.demo_model import demo_model_folder
from weaver_peft.lora import adapt_linears, recompute_layers
from weaver_peft.packing import PackedAttention

ATTENTION_NAME = "weaver"
ATTENTION_PARTS, MLP_PARTS = {"self_attn", "attn", "attention"}, {"mlp", "feed_forward", "ffn"}


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """A linear module that adapters may train. `kind` is "attn", "mlp" or "unembed"."""

    name: str
    kind: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class BaseModel:
    """The frozen model. Any thread may call `hidden_states`: what differs between calls travels in the call."""

    facts: ModelFacts
    model: PreTrainedModel
    modules: tuple[AdaptedModule, ...]
    device: torch.device

    @property
    def head_VH(self) -> torch.Tensor:
        return self.model.get_output_embeddings().weight

    @property
    def head_name(self) -> str:
        return self.modules[-1].name

    def hidden_states(self, tokens_T: torch.Tensor, positions_T: torch.Tensor, call: Call) -> torch.Tensor:
        """The last hidden state of each packed token, after the final norm, (T, H)."""
        with forward_call(call):
            decoder = self.model.get_decoder()
            output = decoder(input_ids=tokens_T[None], position_ids=positions_T[None], use_cache=False)
        return output.last_hidden_state[0]


_loaded: "WeakValueDictionary[tuple[str, ...], BaseModel]" = WeakValueDictionary()
_models: "WeakValueDictionary[tuple[str, ...], PreTrainedModel]" = WeakValueDictionary()
_loading = threading.Lock()


def describe(source: ModelSource) -> ModelFacts:
    """What the model's configuration says, without loading its weights. Raises InvalidInput when there is none."""
    location = resolved(source.location)
    try:
        config = AutoConfig.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the model {source.name!r} cannot be read from {source.location!r}: {error}") from error
    _refuse_what_packing_would_break(source.name, config)
    return ModelFacts(
        name=source.name,
        architecture=(config.architectures or [config.model_type])[0],
        vocabulary_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        end_token_ids=_end_token_ids(location, config),
        tokenizer_location=location,
    )


def load_base_model(source: ModelSource) -> BaseModel:
    """The model of `source`, loaded on first use and shared by everybody in this process who holds it.

    Names for the same weights share them, also where one's folder links to another's; each keeps its own tokenizer.
    """
    device = _device(source.device)
    location, settings = resolved(source.location), (str(device), source.dtype)
    with _loading:
        base = _loaded.get((source.name, location, *settings))
        if base is None:
            facts, numbers = describe(source), (*_numbers(location), *settings)
            model = _models.get(numbers)
            base = _load(source, facts, device) if model is None else _sharing(model, facts, device)
            _loaded[(source.name, location, *settings)], _models[numbers] = base, base.model
        return base


def _numbers(location: str) -> tuple[str, ...]:
    """What makes a model compute what it does: its configuration and its weight files, wherever links lead."""
    folder = Path(location)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not files:
        return (location,)
    return ((folder / "config.json").read_text(), *sorted(str(file.resolve()) for file in files))


def _sharing(model: PreTrainedModel, facts: ModelFacts, device: torch.device) -> BaseModel:
    return BaseModel(facts, model, adapted_modules(model), device)


def _load(source: ModelSource, facts: ModelFacts, device: torch.device) -> BaseModel:
    logging.disable_progress_bar()
    dtype = "auto" if source.dtype == "auto" else getattr(torch, source.dtype)
    model = AutoModelForCausalLM.from_pretrained(resolved(source.location), dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval().requires_grad_(False)
    _refuse_unpackable_modules(source.name, model)
    probe_T, expected_TV = _probe(model, facts)
    model.set_attn_implementation(ATTENTION_NAME)
    modules = adapted_modules(model)
    adapt_linears(model, [module.name for module in modules])
    recompute_layers(model.get_decoder().layers)
    base = BaseModel(facts, model, modules, device)
    _check_against_transformers(base, probe_T, expected_TV)
    return base


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return current_call().attention(module.layer_idx, query, key, value, scale), None


def _no_mask(*_: object, **__: object) -> None:
    """Packed attention needs no mask tensor."""


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def resolved(location: str) -> str:
    """What transformers loads: a folder's path, or a hub id as it is."""
    if location == "demo":
        return str(demo_model_folder())
    folder = Path(location).expanduser()
    return str(folder.resolve()) if folder.is_dir() else location


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda' was asked for and torch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _end_token_ids(location: str, config: Any) -> tuple[int, ...]:
    try:
        found = GenerationConfig.from_pretrained(location).eos_token_id
    except OSError:
        found = None
    found = config.eos_token_id if found is None else found
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _refuse_what_packing_would_break(name: str, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        raise InvalidInput(
            f"the model {name!r} uses rope type {rope['rope_type']!r}, whose positions depend on the longest sequence "
            "of a batch; weaver packs sequences of several clients and would change their results"
        )
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True) and window and window < config.max_position_embeddings
    if used and any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ["sliding"]):
        raise InvalidInput(f"the model {name!r} uses sliding-window attention, which the backend 'peft' does not offer")


def _refuse_unpackable_modules(name: str, model: PreTrainedModel) -> None:
    if type(model.get_output_embeddings()) is not nn.Linear or model.get_output_embeddings().bias is not None:
        raise InvalidInput(f"the model {name!r} has an output layer the backend 'peft' does not know")


def adapted_modules(model: PreTrainedModel) -> tuple[AdaptedModule, ...]:
    """Every linear module of the decoder layers, in order, and the output layer last."""
    layers = model.get_decoder().layers
    names = {module: name for name, module in model.named_modules()}
    found = []
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            parts = set(names[module].split("."))
            kind = "attn" if parts & ATTENTION_PARTS else "mlp" if parts & MLP_PARTS else None
            if kind is not None:
                found.append(AdaptedModule(names[module], kind, module.in_features, module.out_features))
    head = model.get_output_embeddings()
    return (*found, AdaptedModule(names[head], "unembed", head.in_features, head.out_features))


def _probe(model: PreTrainedModel, facts: ModelFacts) -> tuple[torch.Tensor, torch.Tensor]:
    """A few tokens and the logits transformers itself computes for them, as two sequences of 5 and 9."""
    generator = torch.Generator().manual_seed(0)
    tokens_T = torch.randint(facts.vocabulary_size, (14,), generator=generator).to(model.device)
    with torch.no_grad():
        logits = [model(input_ids=part[None], use_cache=False).logits[0] for part in (tokens_T[:5], tokens_T[5:])]
    return tokens_T, torch.cat(logits)


def _check_against_transformers(base: BaseModel, probe_T: torch.Tensor, expected_TV: torch.Tensor) -> None:
    """Refuse a model that weaver would compute otherwise than transformers does (an unknown scaling, a soft cap)."""
    call = Call((Segment(0, 14, None),), PackedAttention([5, 9], base.device))
    positions_T = torch.cat([torch.arange(5), torch.arange(9)]).to(base.device)
    with torch.no_grad():
        logits_TV = base.hidden_states(probe_T, positions_T, call) @ base.head_VH.T
    tolerance = 1e-3 if base.model.dtype == torch.float32 else 5e-2
    difference = (logits_TV - expected_TV).abs().max() / expected_TV.abs().max().clamp_min(1e-6)
    if not difference <= tolerance:
        raise InvalidInput(
            f"the backend 'peft' computes {base.facts.name!r} ({base.facts.architecture}) otherwise than transformers: "
            f"logits differ by {difference:.1e} of their size. This architecture is not supported."
        )
