"""One model's optimizer on ranks: AdamW on this rank's parts of the tensors, Dimuon on whole tensors.

AdamW moves each number by itself. Dimuon's direction is a function of the whole matrix, so every rank that has a part
of one keeps a copy of it, gathers the gradient, computes the whole step and takes its part.
"""

from collections.abc import Mapping

import torch
from weaver_peft.optimizers import MOMENTS, ModelOptimizer

from weaver.domain import DIMUON, DimuonParams, FloatArray, OptimizerState, OptimParams
from weaver_megatron.collectives import gathered
from weaver_megatron.ranks import Ranks
from weaver_megatron.sharding import Part, cut_all, gather_all


class RankOptimizer:
    """Made by its first step or by the state it goes on from. Every rank calls every method."""

    def __init__(self, ranks: Ranks, parts: Mapping[str, Part], parameters: Mapping[str, torch.Tensor]) -> None:
        self._ranks, self._parts, self._parameters = ranks, parts, parameters
        self._begin(whole=False)

    def step(self, params: OptimParams, gradients: Mapping[str, torch.Tensor]) -> None:
        """One step on the gradients of all ranks, of which this rank has its parts."""
        match params:
            case DimuonParams() if not self._is_whole:
                self._begin(whole=True)
        for name, tensor in self._tensors.items():
            tensor.grad = self._seen(name, gradients[name])
        self._optimizer.step(params)
        for name, tensor in self._tensors.items():
            tensor.grad = None
            if tensor is not self._parameters[name]:
                with torch.no_grad():
                    self._parameters[name].copy_(self._parts[name].cut.of(tensor))

    def export(self) -> OptimizerState:
        """Whole tensors on rank 0, none on the others."""
        state = self._optimizer.export()
        found: dict[str, FloatArray] = {}
        for moment in MOMENTS[state.kind] if state.step else ():
            seen = {name: torch.from_numpy(state.tensors[f"{name}.{moment}"]) for name in self._tensors}
            local = {name: self._parts[name].cut.of(one) if self._is_whole else one for name, one in seen.items()}
            whole = gather_all(self._ranks, self._parts, local)
            found |= {f"{name}.{moment}": array for name, array in whole.items()}
        order = [f"{name}.{moment}" for name in self._parts for moment in MOMENTS[state.kind]]
        return OptimizerState(state.step, {name: found[name] for name in order if name in found}, state.kind)

    def expected(self, state: OptimizerState) -> Mapping[str, tuple[int, int]]:
        """The whole tensors that a state with steps must have, and their shapes."""
        return {f"{name}.{moment}": part.shape for name, part in self._parts.items() for moment in MOMENTS[state.kind]}

    def load(self, state: OptimizerState | None) -> None:
        """Go on from a whole state, or begin anew. What `expected` says has been checked, and weights are in place."""
        if state is None or state.step == 0:
            self._begin(whole=False)
            return
        self._begin(whole=state.kind == DIMUON)
        tensors: dict[str, FloatArray] = {}
        for moment in MOMENTS[state.kind]:
            whole = {name: state.tensors[f"{name}.{moment}"] for name in self._parts}
            if not self._is_whole:
                whole = {name: part.numpy() for name, part in cut_all(self._parts, whole).items()}
            tensors |= {f"{name}.{moment}": whole[name] for name in self._tensors}
        self._optimizer.load(OptimizerState(state.step, tensors, state.kind))

    def _begin(self, *, whole: bool) -> None:
        self._is_whole = whole
        self._tensors = {
            name: tensor if self._parts[name].cut.dim is None or not whole else self._seen(name, tensor).clone()
            for name, tensor in self._parameters.items()
        }
        self._optimizer = ModelOptimizer(self._tensors)

    def _seen(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as the optimizer sees it: this rank's part, or the whole."""
        part = self._parts[name]
        group = self._ranks.expert_tensor if part.is_expert else self._ranks.tensor
        match part.cut.dim if self._is_whole else None:
            case None:
                return tensor
            case 0:
                return gathered(tensor, group)[: part.cut.size]
            case _:
                return gathered(tensor.T, group)[: part.cut.size].T.contiguous()
