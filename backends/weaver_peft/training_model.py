"""One adapter being trained: weights and optimizer in float32, its gradients too, whatever the base model's dtype."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from weaver.domain import Adapter, FloatArray, LoraSpec, ModelState, OptimParams
from weaver.errors import InvalidInput
from weaver_peft.adapters import refuse_other_base_weights
from weaver_peft.base_model import AdaptedModule, BaseModel
from weaver_peft.call import LoraPair
from weaver_peft.lora import initial_pair
from weaver_peft.optimizers import ModelOptimizer

Gradients = dict[str, torch.Tensor]


class TrainingModel:
    """`parameters` are named as PEFT's files name them: `base_model.model.<module>.lora_A.weight`."""

    def __init__(self, base: BaseModel, lora: LoraSpec) -> None:
        assert lora.seed is not None
        self.base, self.lora = base, lora
        self.modules = trained_modules(base, lora)
        self.pairs: dict[str, LoraPair] = {}
        self.parameters: dict[str, torch.Tensor] = {}
        for module in self.modules:
            pair = initial_pair(module.name, module.in_features, module.out_features, lora.rank, lora.seed, lora.scale)
            self._place(module.name, pair)
        self.gradients: Gradients = {}
        self._optimizer = ModelOptimizer(self.parameters)

    def add_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Accumulate what one call of forward_backward found."""
        for name, gradient in gradients.items():
            if name in self.gradients:
                self.gradients[name].add_(gradient)
            else:
                self.gradients[name] = gradient

    def step(self, params: OptimParams) -> dict[str, float]:
        """One optimizer step on the accumulated gradients, zero where there are none, and clear them."""
        for name, parameter in self.parameters.items():
            parameter.grad = self.gradients.pop(name, None)
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        tensors = list(self.parameters.values())
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors])
        if params.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(tensors, params.grad_clip_norm, norm)
        self._optimizer.step(params)
        for tensor in tensors:
            tensor.grad = None
        return {"grad_norm": float(norm)}

    def export(self, *, optimizer: bool) -> ModelState:
        tensors = {name: _copy(parameter) for name, parameter in self.parameters.items()}
        names = tuple(sorted({last_part(module) for module in self.modules}))
        adapter = Adapter(self.base.facts.name, self.lora, names, tensors)
        return ModelState(adapter, self._optimizer.export() if optimizer else None)

    def load(self, state: ModelState) -> None:
        """Replace weights and optimizer state; everything is checked before anything changes."""
        others = state.adapter.tensors.keys() - self.parameters.keys()
        beside = {name: torch.from_numpy(state.adapter.tensors[name]) for name in others if ".lora_" not in name}
        refuse_other_base_weights("the adapter", beside, self.base)
        own = {name: tensor for name, tensor in state.adapter.tensors.items() if name not in beside}
        self._check_same_shapes(own, self.parameters, "adapter")
        if state.optimizer is not None and state.optimizer.step > 0:
            expected = self._optimizer.expected(state.optimizer)
            self._check_same_shapes(state.optimizer.tensors, expected, "optimizer state")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(state.adapter.tensors[name]))
        self.gradients.clear()
        self._optimizer.load(state.optimizer)

    def _place(self, module: str, pair: LoraPair) -> None:
        a = pair.a.to(self.base.device).requires_grad_()
        b = pair.b.to(self.base.device).requires_grad_()
        self.pairs[module] = LoraPair(a, b, pair.scale)
        self.parameters[f"base_model.model.{module}.lora_A.weight"] = a
        self.parameters[f"base_model.model.{module}.lora_B.weight"] = b

    def _check_same_shapes(
        self, found: Mapping[str, FloatArray], expected: Mapping[str, torch.Tensor], what: str
    ) -> None:
        for name in sorted(found.keys() ^ expected.keys()):
            where = "lacks" if name in expected else "has an unexpected"
            raise InvalidInput(f"the {what} {where} tensor {name!r} for a model of rank {self.lora.rank}")
        for name, tensor in expected.items():
            if found[name].shape != tuple(tensor.shape):
                raise InvalidInput(
                    f"the {what}'s {name!r} has shape {found[name].shape}; this model's has {tuple(tensor.shape)}"
                )


def trained_modules(base: BaseModel, lora: LoraSpec) -> Sequence[AdaptedModule]:
    """The modules a spec trains. Raises InvalidInput when the model has none of a kind that was asked for."""
    wanted = {"mlp": lora.train_mlp, "attn": lora.train_attn, "unembed": lora.train_unembed}
    kinds = {module.kind for module in base.modules}
    for kind, asked in wanted.items():
        if asked and kind not in kinds:
            raise InvalidInput(
                f"train_{kind}: {base.facts.name!r} has no linear {kind} modules the backend 'peft' can adapt"
            )
    asked_for = [module for module in base.modules if wanted[module.kind]]
    if not lora.only_modules:
        return asked_for
    for name in lora.only_modules:
        if name not in {last_part(module) for module in asked_for}:
            raise InvalidInput(
                f"{name!r} is no linear layer of {base.facts.name!r} ({base.facts.architecture}) that the backend "
                "'peft' can adapt"
            )
    return [module for module in asked_for if last_part(module) in lora.only_modules]


def last_part(module: AdaptedModule) -> str:
    """As PEFT's `target_modules` name it."""
    return module.name.rpartition(".")[2]


def _copy(tensor: torch.Tensor) -> FloatArray:
    return np.array(tensor.detach().float().cpu().numpy())
