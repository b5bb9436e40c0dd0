"""AdamW and Dimuon for one model's LoRA tensors. torch has both; what is ours is which numbers they get."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from weaver.domain import ADAMW, DIMUON, AdamParams, DimuonParams, FloatArray, OptimizerState, OptimParams

MOMENTS: Final = {ADAMW: ("exp_avg", "exp_avg_sq"), DIMUON: ("momentum_buffer",)}
"""The tensors that an optimizer keeps for each parameter, by torch's names."""


class ModelOptimizer:
    """Made by its first step, or by the state it goes on from: which optimizer a model has is settled at the door."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = parameters
        self._kind = ADAMW
        self._steps = 0
        self._torch: torch.optim.Optimizer | None = None

    def step(self, params: OptimParams) -> None:
        """One step on the parameters' `grad`."""
        optimizer = self._made(DIMUON if isinstance(params, DimuonParams) else ADAMW)
        for group in optimizer.param_groups:
            group.update(_settings(params, group["params"][0]))
        optimizer.step()
        self._steps += 1

    def export(self) -> OptimizerState:
        if self._torch is None:
            return OptimizerState(0, {}, self._kind)
        tensors = {
            f"{name}.{part}": _copy(self._torch.state[parameter][part])
            for name, parameter in self._parameters.items()
            for part in MOMENTS[self._kind]
        }
        return OptimizerState(self._steps, tensors, self._kind)

    def load(self, state: OptimizerState | None) -> None:
        """Go on from `state`, or begin anew. What `expected` says has been checked."""
        self._torch, self._steps = None, 0
        if state is None or state.step == 0:
            return
        optimizer, self._steps = self._made(state.kind), state.step
        for name, parameter in self._parameters.items():
            kept = {part: _on(parameter, state.tensors[f"{name}.{part}"]) for part in MOMENTS[state.kind]}
            optimizer.state[parameter] = {"step": torch.tensor(float(state.step)), **kept}

    def expected(self, state: OptimizerState) -> Mapping[str, torch.Tensor]:
        """Tensors of the names and shapes that a state with steps must have."""
        return {f"{name}.{part}": p for name, p in self._parameters.items() for part in MOMENTS[state.kind]}

    def _made(self, kind: str) -> torch.optim.Optimizer:
        if self._torch is None:
            self._kind = kind
            tensors = list(self._parameters.values())
            if kind == ADAMW:
                self._torch = torch.optim.AdamW(tensors, foreach=True)
            else:  # a group for each tensor, because the learning rate is corrected by its shape
                self._torch = torch.optim.Muon([{"params": [tensor]} for tensor in tensors], weight_decay=0.0)
        assert self._kind == kind
        return self._torch


def _settings(params: OptimParams, tensor: torch.Tensor) -> Mapping[str, object]:
    match params:
        case AdamParams():
            return {
                "lr": params.learning_rate,
                "betas": (params.beta1, params.beta2),
                "eps": params.eps,
                "weight_decay": params.weight_decay,
            }
        case DimuonParams():
            # torch multiplies by the root of rows / columns where that is above 1; a LoRA tensor's step is to have the
            # Frobenius norm of the root of its rank, whatever its shape.
            rows, columns = tensor.shape
            return {"lr": params.learning_rate / math.sqrt(max(1.0, rows / columns)), "momentum": params.beta1}


def _copy(tensor: torch.Tensor) -> FloatArray:
    """Row by row: Muon lays its momentum out like the gradient, which may be a transposed view, and safetensors writes
    an array's memory as it lies there."""
    return np.array(tensor.cpu().numpy(), order="C")


def _on(parameter: torch.Tensor, array: FloatArray) -> torch.Tensor:
    return torch.from_numpy(array).to(parameter.device, copy=True)
