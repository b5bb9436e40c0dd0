"""Reads a rank's part of a Hugging Face checkpoint: from each safetensors file only the rows and columns it needs.

Shapes: V vocabulary, H hidden size, D head size.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from weaver_peft.base_model import resolved

from weaver.domain import ModelSource
from weaver.errors import InvalidInput
from weaver_megatron.architecture import Architecture
from weaver_megatron.experts import ExpertMixture
from weaver_megatron.model import ParallelModel
from weaver_megatron.ranks import Ranks

INDEX: Final = "model.safetensors.index.json"
Fill = tuple[torch.Tensor, Callable[["Checkpoint"], torch.Tensor]]
"""A tensor of the model, and what reads its values."""


class Checkpoint:
    """A folder's tensors by name. Raises InvalidInput naming the tensor that is missing."""

    def __init__(self, source: ModelSource) -> None:
        found = Path(resolved(source.location))
        if not found.is_dir():
            found = Path(snapshot_download(source.location, allow_patterns=["*.safetensors", "*.json"]))
        self._name = source.name
        self._files: dict[str, Path] = {}
        for path in _files(found):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)
        if not self._files:
            raise InvalidInput(f"the model {source.name!r} has no *.safetensors files in {source.location!r}")
        self._open: dict[Path, safe_open] = {}

    def names(self) -> set[str]:
        return set(self._files)

    def whole(self, name: str) -> torch.Tensor:
        return self._slice(name)[:]

    def rows(self, name: str, part: int, parts: int) -> torch.Tensor:
        """Part `part` of `parts`, padded with zeros where the rows do not divide."""
        found = self._slice(name)
        size = found.get_shape()[0]
        length = -(-size // parts)
        here = found[min(part * length, size) : min((part + 1) * length, size)]
        if len(here) == length:
            return here
        return torch.cat([here, here.new_zeros(length - len(here), *here.shape[1:])])

    def columns(self, name: str, part: int, parts: int) -> torch.Tensor:
        found = self._slice(name)
        length = found.get_shape()[1] // parts
        return found[:, part * length : (part + 1) * length]

    def _slice(self, name: str) -> Any:
        path = self._files.get(name)
        if path is None:
            raise InvalidInput(f"the model {self._name!r} lacks the tensor {name!r}")
        if path not in self._open:
            self._open = {path: safe_open(path, framework="pt")}
        return self._open[path].get_slice(name)


def load_weights(model: ParallelModel, source: ModelSource) -> None:
    """Fill the modules of this rank. Raises InvalidInput for tensors that are missing, too many or of another shape."""
    checkpoint = Checkpoint(source)
    _refuse_others(model.architecture, checkpoint, source.name)
    for target, read in _fills(model):
        values = read(checkpoint)
        if values.shape != target.shape:
            raise InvalidInput(
                f"the model {source.name!r} has weights of shape {list(values.shape)} where its configuration needs "
                f"{list(target.shape)}"
            )
        with torch.no_grad():
            target.copy_(values)


def _files(folder: Path) -> Iterator[Path]:
    try:
        if (folder / INDEX).exists():
            table = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            yield from (folder / name for name in sorted(set(table.values())))
        else:
            yield from sorted(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InvalidInput(f"the weights in {folder} cannot be read: {error}") from error


def _refuse_others(architecture: Architecture, checkpoint: Checkpoint, name: str) -> None:
    """A tensor that is not read would be a part of the model that is not computed."""
    known = set(_known(architecture))
    others = {one for one in checkpoint.names() - known if not one.endswith("rotary_emb.inv_freq")}
    if others:
        raise InvalidInput(
            f"the model {name!r} has the tensor {min(others)!r}, which the backend 'megatron' does not compute"
        )


def _known(architecture: Architecture) -> Iterator[str]:
    yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for number in range(architecture.layers):
        layer = f"model.layers.{number}"
        yield from (f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight")
        yield from (f"{layer}.self_attn.{part}_proj.weight" for part in "qkvo")
        if architecture.qkv_bias:
            yield from (f"{layer}.self_attn.{part}_proj.bias" for part in "qkv")
        if architecture.head_norms:
            yield from (f"{layer}.self_attn.{part}_norm.weight" for part in "qk")
        blocks = [f"{layer}.mlp"]
        if number in architecture.mixture_layers:
            yield f"{layer}.mlp.gate.weight"
            blocks = [f"{layer}.mlp.experts.{expert}" for expert in range(architecture.experts)]
        yield from (f"{block}.{part}_proj.weight" for block in blocks for part in ("gate", "up", "down"))


def _fills(model: ParallelModel) -> Iterator[Fill]:
    gpt, ranks, architecture = model.gpt, model.ranks, model.architecture
    part, parts = ranks.tp_rank, ranks.tp
    yield gpt.embedding.word_embeddings.weight, lambda one: one.rows("model.embed_tokens.weight", part, parts)
    if not architecture.tied:
        yield gpt.output_layer.weight, lambda one: one.rows("lm_head.weight", part, parts)
    yield gpt.decoder.final_layernorm.weight, _whole("model.norm.weight")
    for number, layer in enumerate(gpt.decoder.layers):
        name, attention = f"model.layers.{number}", layer.self_attention
        yield layer.input_layernorm.weight, _whole(f"{name}.input_layernorm.weight")
        yield layer.pre_mlp_layernorm.weight, _whole(f"{name}.post_attention_layernorm.weight")
        groups = attention.num_query_groups_per_partition
        yield attention.linear_qkv.weight, _qkv(f"{name}.self_attn", "weight", groups, ranks)
        if architecture.qkv_bias:
            yield attention.linear_qkv.bias, _qkv(f"{name}.self_attn", "bias", groups, ranks)
        if architecture.head_norms:
            yield attention.q_layernorm.weight, _whole(f"{name}.self_attn.q_norm.weight")
            yield attention.k_layernorm.weight, _whole(f"{name}.self_attn.k_norm.weight")
        yield attention.linear_proj.weight, _columns(f"{name}.self_attn.o_proj.weight", part, parts)
        if number in architecture.mixture_layers:
            yield from _mixture(layer.mlp, f"{name}.mlp", ranks)
        else:
            yield layer.mlp.linear_fc1.weight, _gate_up(f"{name}.mlp", part, parts)
            yield layer.mlp.linear_fc2.weight, _columns(f"{name}.mlp.down_proj.weight", part, parts)


def _mixture(mixture: ExpertMixture, name: str, ranks: Ranks) -> Iterator[Fill]:
    part, parts = ranks.expert_tp_rank, ranks.layout.expert_tp
    yield mixture.router_weight, _whole(f"{name}.gate.weight")
    for place in range(len(mixture.gate_up_weight)):
        expert = f"{name}.experts.{mixture.first + place}"
        yield mixture.gate_up_weight[place], _gate_up(expert, part, parts)
        yield mixture.down_weight[place], _columns(f"{expert}.down_proj.weight", part, parts)


def _whole(name: str) -> Callable[[Checkpoint], torch.Tensor]:
    return lambda one: one.whole(name)


def _columns(name: str, part: int, parts: int) -> Callable[[Checkpoint], torch.Tensor]:
    return lambda one: one.columns(name, part, parts)


def _gate_up(name: str, part: int, parts: int) -> Callable[[Checkpoint], torch.Tensor]:
    """This rank's rows of the gate, then its rows of the other."""
    return lambda one: torch.cat([one.rows(f"{name}.{which}_proj.weight", part, parts) for which in ("gate", "up")])


def _qkv(name: str, kind: str, groups: int, ranks: Ranks) -> Callable[[Checkpoint], torch.Tensor]:
    """One key head after the other: the query heads that share it, the key head, its value head."""

    def read(one: Checkpoint) -> torch.Tensor:
        found = [one.rows(f"{name}.{part}_proj.{kind}", ranks.tp_rank, ranks.tp) for part in "qkv"]
        return torch.cat([part.view(groups, -1, *part.shape[1:]) for part in found], dim=1).flatten(0, 1)

    return read
