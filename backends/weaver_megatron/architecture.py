"""What a Hugging Face configuration says of a model, checked before any rank starts. Reads no weights."""

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AutoConfig
from weaver_peft.base_model import describe, resolved

from weaver.domain import ModelFacts, ModelSource
from weaver.errors import InvalidInput
from weaver_megatron.layout import Layout

KNOWN: Final = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """The numbers a model is built from. `config` is transformers' own, for what is computed by its formulas (RoPE)."""

    facts: ModelFacts
    config: Any
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    tied: bool
    qkv_bias: bool
    head_norms: bool
    dtype: torch.dtype
    experts: int
    experts_per_token: int
    expert_intermediate: int
    normalised_routing: bool
    mixture_layers: frozenset[int]


def read_architecture(source: ModelSource) -> Architecture:
    """Raises InvalidInput naming what of the model the backend does not compute."""
    facts = describe(source)
    config = AutoConfig.from_pretrained(resolved(source.location))
    _refuse_what_is_not_computed(facts, config)
    moe = facts.architecture == "Qwen3MoeForCausalLM"
    return Architecture(
        facts=facts,
        config=config,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        tied=bool(config.tie_word_embeddings),
        qkv_bias=facts.architecture == "Qwen2ForCausalLM",
        head_norms=facts.architecture.startswith("Qwen3"),
        dtype=_dtype(source, config),
        experts=config.num_experts if moe else 0,
        experts_per_token=config.num_experts_per_tok if moe else 0,
        expert_intermediate=config.moe_intermediate_size if moe else 0,
        normalised_routing=bool(moe and config.norm_topk_prob),
        mixture_layers=_mixture_layers(config) if moe else frozenset(),
    )


def check_layout(architecture: Architecture, layout: Layout) -> None:
    """Raises InvalidInput naming the numbers that the layout's do not divide."""
    name, tp, ep = architecture.facts.name, layout.tp, layout.ep
    divided = [("attention heads", architecture.heads), ("key/value heads", architecture.key_heads)]
    if len(architecture.mixture_layers) < architecture.layers:
        divided.append(("intermediate features", architecture.intermediate))
    for what, count in divided:
        if count % tp:
            raise InvalidInput(
                f"tp is {tp}, but {name!r} has {architecture.heads} attention heads and {architecture.key_heads} "
                f"key/value heads, and {architecture.intermediate} intermediate features: {count} {what} cannot be "
                f"divided by {tp}; use one of --tp {_choices(architecture, divided)}"
            )
    if not architecture.experts and ep > 1:
        raise InvalidInput(f"ep is {ep}, but {name!r} ({architecture.facts.architecture}) has no experts; leave --ep 1")
    if architecture.experts % ep:
        raise InvalidInput(f"ep is {ep}, but {name!r} has {architecture.experts} experts, which it must divide")
    if architecture.expert_intermediate % layout.expert_tp:
        raise InvalidInput(
            f"tp {tp} with ep {ep} cuts each expert of {name!r} in {layout.expert_tp}, but its "
            f"{architecture.expert_intermediate} intermediate features cannot be divided so"
        )


def _choices(architecture: Architecture, divided: list[tuple[str, int]]) -> str:
    fitting = [tp for tp in range(1, architecture.key_heads + 1) if not any(count % tp for _, count in divided)]
    return ", ".join(map(str, fitting))


def _refuse_what_is_not_computed(facts: ModelFacts, config: Any) -> None:
    where = f"the model {facts.name!r}"
    if facts.architecture not in KNOWN:
        raise InvalidInput(f"{where} is a {facts.architecture}; the backend 'megatron' computes {', '.join(KNOWN)}")
    if config.hidden_act != "silu":
        raise InvalidInput(f"{where} sets hidden_act={config.hidden_act!r}; the backend 'megatron' computes 'silu'")
    for field in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if getattr(config, field, False):
            raise InvalidInput(f"{where} sets {field}, which the backend 'megatron' does not compute")


def _mixture_layers(config: Any) -> frozenset[int]:
    dense, step = set(config.mlp_only_layers or ()), config.decoder_sparse_step
    return frozenset(i for i in range(config.num_hidden_layers) if i not in dense and (i + 1) % step == 0)


def _dtype(source: ModelSource, config: Any) -> torch.dtype:
    if source.dtype != "auto":
        return getattr(torch, source.dtype)
    found = getattr(config, "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32
