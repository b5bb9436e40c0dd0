"""megatron-core's GPTModel built from a Hugging Face configuration, and its forward pass over packed sequences.

Transformer Engine is not needed: norms, rotary embedding and attention are ours, with transformers' formulas.

Shapes: T packed tokens, L those of this rank between layers, H hidden size, D head size; layers take (T, 1, H).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from weaver_megatron.architecture import Architecture
from weaver_megatron.call import Call, current_call, forward_call
from weaver_megatron.collectives import summed
from weaver_megatron.experts import ExpertMixture
from weaver_megatron.linears import AdaptedColumn, AdaptedRow
from weaver_megatron.ranks import Ranks


class RMSNorm(nn.Module):
    """Root mean square norm in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=config.params_dtype))
        self._epsilon = eps

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        wide = input.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._epsilon)
        return self.weight * normed.to(input.dtype)


class PackedCoreAttention(nn.Module):
    """Rotary positions, then each packed sequence attends to itself. The call says where sequences lie."""

    def __init__(self, config: TransformerConfig, layer_number: int, *_: Any, **__: Any) -> None:
        super().__init__()
        self._layer, self._scale = layer_number, config.kv_channels**-0.5

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(T, 1, heads, D) each; the result is (T, 1, heads · D)."""
        call = current_call()
        query, key = (_rotated(part, call).permute(1, 2, 0, 3) for part in (query, key))
        output_1THD = call.attention(self._layer, query, key, value.permute(1, 2, 0, 3), self._scale)
        return output_1THD.flatten(2).transpose(0, 1)


def _rotated(input_T1HD: torch.Tensor, call: Call) -> torch.Tensor:
    first, second = input_T1HD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return input_T1HD * call.cosine_T1D[:, None] + turned * call.sine_T1D[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class ParallelModel:
    """This rank's part of the frozen model."""

    architecture: Architecture
    ranks: Ranks
    gpt: GPTModel
    rotary: nn.Module

    @property
    def head_VH(self) -> torch.Tensor:
        """This rank's rows of the output layer; the vocabulary is padded to a multiple of tp."""
        return self.gpt.shared_embedding_or_output_weight() if self.architecture.tied else self.gpt.output_layer.weight

    def positions(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of each token's rotation, (T, 1, D), in the model's dtype."""
        like = torch.empty(0, dtype=self.architecture.dtype, device=self.ranks.device)
        cosine_1TD, sine_1TD = self.rotary(like, positions_T[None])
        return cosine_1TD.transpose(0, 1), sine_1TD.transpose(0, 1)

    def hidden_states(self, tokens_T: torch.Tensor, call: Call) -> torch.Tensor:
        """The last hidden states after the final norm, (L, H)."""
        hidden = self._embedded(tokens_T)[:, None]
        with forward_call(call):
            for layer in self.gpt.decoder.layers:
                hidden = _through(layer, hidden, call)
            hidden = self.gpt.decoder.final_layernorm(hidden)
        return hidden[:, 0]

    def _embedded(self, tokens_T: torch.Tensor) -> torch.Tensor:
        table_VH, ranks = self.gpt.embedding.word_embeddings.weight, self.ranks
        rows_T = tokens_T - ranks.tp_rank * len(table_VH)
        elsewhere_T = (rows_T < 0) | (rows_T >= len(table_VH))
        found_TH = F.embedding(rows_T.masked_fill(elsewhere_T, 0), table_VH)
        embedded_TH = summed(found_TH.masked_fill(elsewhere_T[:, None], 0), ranks.tensor)
        if not ranks.layout.sequence_parallel:
            return embedded_TH
        local = len(tokens_T) // ranks.tp
        return embedded_TH[ranks.tp_rank * local : (ranks.tp_rank + 1) * local]


def _through(layer: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    def run(hidden: torch.Tensor) -> torch.Tensor:
        with forward_call(call):
            output, _ = layer(hidden_states=hidden, attention_mask=None)
        return output

    if not (call.recompute and torch.is_grad_enabled()):
        return run(hidden)
    # megatron-core's own is reentrant: on a frozen base it would give the adapters no gradient at all.
    return checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)


def build_model(architecture: Architecture, ranks: Ranks) -> ParallelModel:
    """The modules of this rank, weights not yet read, on the CPU."""
    if not torch.cuda.is_available():
        _without_cuda()
    config = _config(architecture, ranks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gpt = GPTModel(
            config=config,
            transformer_layer_spec=TransformerBlockSubmodules(
                layer_specs=[_layer(architecture, number) for number in range(architecture.layers)],
                layer_norm=RMSNorm,
            ),
            vocab_size=-(-architecture.vocabulary // ranks.tp) * ranks.tp,
            max_sequence_length=architecture.facts.context_length,
            share_embeddings_and_output_weights=architecture.tied,
            position_embedding_type="none",
        )
    for number in architecture.mixture_layers:
        gpt.decoder.layers[number].mlp = ExpertMixture(architecture, ranks, number)
    gpt.eval().requires_grad_(False)
    _adapt(gpt, architecture)
    return ParallelModel(architecture, ranks, gpt, LlamaRotaryEmbedding(architecture.config))


def _without_cuda() -> None:
    """megatron-core makes its sequence-parallel buffers on `torch.cuda.current_device()`, wherever its input is. This
    process is one rank and nothing else, so the answer that fits is the CPU."""
    torch.cuda.current_device = lambda: torch.device("cpu")


def _config(architecture: Architecture, ranks: Ranks) -> TransformerConfig:
    return TransformerConfig(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden,
        ffn_hidden_size=architecture.intermediate,
        num_attention_heads=architecture.heads,
        num_query_groups=architecture.key_heads,
        kv_channels=architecture.head_size,
        layernorm_epsilon=architecture.epsilon,
        normalization="RMSNorm",
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        qk_layernorm=architecture.head_norms,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=ranks.tp,
        sequence_parallel=ranks.layout.sequence_parallel,
        params_dtype=architecture.dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def _layer(architecture: Architecture, number: int) -> ModuleSpec:
    head_norm = RMSNorm if architecture.head_norms else IdentityOp
    mlp = ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1=AdaptedColumn, linear_fc2=AdaptedRow))
    if number in architecture.mixture_layers:
        mlp = IdentityOp  # ours takes its place: megatron-core's own would need more than a configuration
    attention = SelfAttentionSubmodules(
        linear_qkv=AdaptedColumn,
        core_attention=PackedCoreAttention,
        linear_proj=AdaptedRow,
        q_layernorm=head_norm,
        k_layernorm=head_norm,
    )
    return ModuleSpec(
        TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _adapt(gpt: GPTModel, architecture: Architecture) -> None:
    """Tell every layer which Hugging Face modules it computes."""
    for number, layer in enumerate(gpt.decoder.layers):
        name, attention = f"model.layers.{number}", layer.self_attention
        groups, size = attention.num_query_groups_per_partition, architecture.head_size
        heads = attention.num_attention_heads_per_partition
        names = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        attention.linear_qkv.adapt(names, (heads * size, groups * size, groups * size), groups)
        attention.linear_proj.adapt(f"{name}.self_attn.o_proj", architecture.hidden)
        if number not in architecture.mixture_layers:
            width = layer.mlp.linear_fc1.output_size_per_partition // 2
            layer.mlp.linear_fc1.adapt([f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"], (width, width), 1)
            layer.mlp.linear_fc2.adapt(f"{name}.mlp.down_proj", architecture.hidden)
