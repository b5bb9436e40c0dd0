"""One adapter being trained: this rank's parts of its weights, gradients and optimizer state, all float32."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from weaver_peft.lora import initial_pair

from weaver.domain import (
    Adapter,
    FloatArray,
    LoraSpec,
    ModelFacts,
    ModelState,
    OptimParams,
)
from weaver.errors import InvalidInput
from weaver_megatron.call import LocalPair
from weaver_megatron.gradients import clip, global_norm, sum_gradients
from weaver_megatron.optimizer import RankOptimizer
from weaver_megatron.ranks import Ranks
from weaver_megatron.sharding import Part, cut_all, gather_all, speaks_for
from weaver_megatron.sites import Site

PREFIX = "base_model.model."


class TrainingModel:
    """`parameters` are named as PEFT's files name them. `parts` names all of the adapter's, also those elsewhere."""

    def __init__(self, facts: ModelFacts, sites: Sequence[Site], ranks: Ranks, lora: LoraSpec) -> None:
        assert lora.seed is not None
        self.facts, self.lora, self.ranks = facts, lora, ranks
        self.sites = trained_sites(facts, sites, lora)
        self.parts = {name: part for site in self.sites for name, part in _parts(site, lora.rank, ranks)}
        self.parameters: dict[str, torch.Tensor] = {}
        self.pairs: dict[str, LocalPair] = {}
        for site in self.sites:
            if site.is_here:
                self._begin(site, lora.seed)
        self.gradients: dict[str, torch.Tensor] = {}
        self._optimizer = RankOptimizer(self.ranks, self.parts, self.parameters)

    def add_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Accumulate what this rank found in one call of forward_backward; others may have found more."""
        for name, gradient in gradients.items():
            if name in self.gradients:
                self.gradients[name].add_(gradient)
            else:
                self.gradients[name] = gradient

    def step(self, params: OptimParams) -> dict[str, float]:
        """One optimizer step on the gradients of all ranks, zero where there are none, and clear them."""
        found = {name: self.gradients.pop(name, None) for name in self.parameters}
        gradients = {
            name: torch.zeros_like(self.parameters[name]) if one is None else one.contiguous()
            for name, one in found.items()
        }
        sum_gradients(self.ranks, self.parts, gradients)
        norm = global_norm(self.ranks, self.parts, gradients)
        if params.grad_clip_norm > 0:
            clip(gradients, norm, params.grad_clip_norm)
        self._optimizer.step(params, gradients)
        return {"grad_norm": float(norm)}

    def export(self, *, optimizer: bool) -> ModelState:
        """The whole adapter on rank 0, one without tensors on the others; every rank calls it."""
        tensors = gather_all(self.ranks, self.parts, self.parameters)
        state = self._optimizer.export() if optimizer else None
        names = tuple(sorted({last_part(site.name) for site in self.sites}))
        return ModelState(Adapter(self.facts.name, self.lora, names, tensors), state)

    def load(self, state: ModelState) -> None:
        """Replace weights and optimizer state by parts of whole ones; everything is checked before anything changes."""
        self._check_same_shapes(state.adapter.tensors, {n: p.shape for n, p in self.parts.items()}, "adapter")
        if state.optimizer is not None and state.optimizer.step > 0:
            expected = self._optimizer.expected(state.optimizer)
            self._check_same_shapes(state.optimizer.tensors, expected, "optimizer state")
        with torch.no_grad():
            for name, part in cut_all(self.parts, state.adapter.tensors).items():
                self.parameters[name].copy_(part)
        self.gradients.clear()
        self._optimizer.load(state.optimizer)

    def _begin(self, site: Site, seed: int) -> None:
        """The whole pair is drawn and then cut, so that every layout begins with the same numbers."""
        lora, device = self.lora, self.ranks.device
        pair = initial_pair(site.name, site.in_features, site.out_features, lora.rank, seed, lora.scale)
        a = site.a.of(pair.a).to(device).requires_grad_()
        b = site.b.of(pair.b).to(device).requires_grad_()
        self.pairs[site.name] = LocalPair(a, b, lora.scale)
        self.parameters[f"{PREFIX}{site.name}.lora_A.weight"] = a
        self.parameters[f"{PREFIX}{site.name}.lora_B.weight"] = b

    def _check_same_shapes(
        self, found: Mapping[str, FloatArray], expected: Mapping[str, tuple[int, ...]], what: str
    ) -> None:
        for name in sorted(found.keys() ^ expected.keys()):
            where = "lacks" if name in expected else "has an unexpected"
            raise InvalidInput(f"the {what} {where} tensor {name!r} for a model of rank {self.lora.rank}")
        for name, shape in expected.items():
            if found[name].shape != shape:
                raise InvalidInput(f"the {what}'s {name!r} has shape {found[name].shape}; this model's has {shape}")


def trained_sites(facts: ModelFacts, sites: Sequence[Site], lora: LoraSpec) -> tuple[Site, ...]:
    """The modules a spec trains. Raises InvalidInput for a name that none of them has."""
    wanted = {"mlp": lora.train_mlp, "attn": lora.train_attn, "unembed": lora.train_unembed}
    asked_for = tuple(site for site in sites if wanted[site.kind])
    names = {last_part(site.name) for site in asked_for}
    for name in lora.only_modules:
        if name not in names:
            raise InvalidInput(
                f"{name!r} is no linear layer of {facts.name!r} ({facts.architecture}) that the backend 'megatron' can "
                "adapt"
            )
    return tuple(site for site in asked_for if not lora.only_modules or last_part(site.name) in lora.only_modules)


def last_part(name: str) -> str:
    """As PEFT's `target_modules` name a module."""
    return name.rpartition(".")[2]


def _parts(site: Site, rank: int, ranks: Ranks) -> Iterator[tuple[str, Part]]:
    shapes = {"A": (rank, site.in_features), "B": (site.out_features, rank)}
    for side, cut in (("A", site.a), ("B", site.b)):
        speaks = speaks_for(ranks, cut, site.is_expert)
        part = Part(shapes[side], cut, site.is_expert, site.is_here, speaks)
        yield f"{PREFIX}{site.name}.lora_{side}.weight", part
