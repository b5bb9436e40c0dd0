"""Which modules adapters may train, and which part of each module's pair a rank holds."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weaver_megatron.architecture import Architecture
from weaver_megatron.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Cut:
    """How a matrix is cut: this rank has part `part` of `parts` of equal length along `dim`, the last ones padded with
    zeros. `dim` None: it is whole. `partial`: ranks find summands of its gradient."""

    dim: int | None
    parts: int
    part: int
    size: int
    partial: bool = False

    @property
    def length(self) -> int:
        return -(-self.size // self.parts)

    @property
    def span(self) -> tuple[int, int]:
        """What of the whole is here, without padding."""
        start = min(self.part * self.length, self.size)
        return start, min(start + self.length, self.size)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part, in memory of its own."""
        if self.dim is None:
            return whole.clone()
        start, stop = self.span
        here = whole.narrow(self.dim, start, stop - start)
        shape = list(whole.shape)
        shape[self.dim] = self.length
        padded = whole.new_zeros(shape)
        padded.narrow(self.dim, 0, stop - start).copy_(here)
        return padded

    def without_padding(self, part: torch.Tensor) -> torch.Tensor:
        if self.dim is None:
            return part
        start, stop = self.span
        return part.narrow(self.dim, 0, stop - start)


@dataclass(frozen=True, slots=True)
class Site:
    """A linear module by its Hugging Face name. `kind` is "attn", "mlp" or "unembed". `is_here`: this rank computes it,
    whole or in part; `is_expert`: it belongs to an expert."""

    name: str
    kind: str
    in_features: int
    out_features: int
    a: Cut
    b: Cut
    is_expert: bool = False
    is_here: bool = True


def sites_of(architecture: Architecture, ranks: Ranks) -> tuple[Site, ...]:
    """Every module, in the order of the layers, the output layer last."""
    return tuple(_sites(architecture, ranks))


def _sites(architecture: Architecture, ranks: Ranks) -> Iterator[Site]:
    hidden, size = architecture.hidden, architecture.head_size
    heads, key_heads = architecture.heads * size, architecture.key_heads * size
    for number in range(architecture.layers):
        attention = f"model.layers.{number}.self_attn"
        for part, width in (("q", heads), ("k", key_heads), ("v", key_heads)):
            yield _column(f"{attention}.{part}_proj", "attn", hidden, width, ranks)
        yield _row(f"{attention}.o_proj", "attn", heads, hidden, ranks)
        mlp = f"model.layers.{number}.mlp"
        if number in architecture.mixture_layers:
            for expert in range(architecture.experts):
                yield from _expert(f"{mlp}.experts.{expert}", expert, architecture, ranks)
            continue
        for part in ("gate_proj", "up_proj"):
            yield _column(f"{mlp}.{part}", "mlp", hidden, architecture.intermediate, ranks)
        yield _row(f"{mlp}.down_proj", "mlp", architecture.intermediate, hidden, ranks)
    yield _column("lm_head", "unembed", hidden, architecture.vocabulary, ranks)


def _column(name: str, kind: str, inputs: int, outputs: int, ranks: Ranks) -> Site:
    # Under sequence parallelism A sees this rank's tokens only. The output layer gets all of them.
    partial = ranks.layout.sequence_parallel and kind != "unembed"
    a = Cut(None, 1, 0, inputs, partial)
    return Site(name, kind, inputs, outputs, a, Cut(0, ranks.tp, ranks.tp_rank, outputs))


def _row(name: str, kind: str, inputs: int, outputs: int, ranks: Ranks) -> Site:
    b = Cut(None, 1, 0, outputs, ranks.layout.sequence_parallel)
    return Site(name, kind, inputs, outputs, Cut(1, ranks.tp, ranks.tp_rank, inputs), b)


def _expert(name: str, expert: int, architecture: Architecture, ranks: Ranks) -> Iterator[Site]:
    parts, part = ranks.layout.expert_tp, ranks.expert_tp_rank
    hidden, width = architecture.hidden, architecture.expert_intermediate
    here = expert // (architecture.experts // ranks.layout.ep) == ranks.expert_part
    partial = parts > 1
    for which in ("gate_proj", "up_proj"):
        whole, cut = Cut(None, 1, 0, hidden, partial), Cut(0, parts, part, width)
        yield Site(f"{name}.{which}", "mlp", hidden, width, whole, cut, is_expert=True, is_here=here)
    whole, cut = Cut(None, 1, 0, hidden, partial), Cut(1, parts, part, width)
    yield Site(f"{name}.down_proj", "mlp", width, hidden, cut, whole, is_expert=True, is_here=here)
