"""A backend under check: its tiny model, its passes, and how what it accumulates is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from weaver.backend import Backend, BackendFactory, ModelSource, Pass
from weaver.domain import AdamParams, FloatArray, ForwardBackwardResult, LoraSpec, ModelState
from weaver.loss import ENTROPY, ENTROPY_COEFF, TEMPERATURE, Loss, LossInput
from weaver.testing.making import Making, config_of
from weaver.testing.reference import TrainingReference

LORA: Final = LoraSpec(rank=4, alpha=8.0, seed=1)
MIXED: Final = (13, 2, 40, 1, 7, 90)
"""Lengths of data that are packed, padded or sharded together."""

Tensors = Mapping[str, FloatArray]
NOTHING: Final = AdamParams(learning_rate=0.0)
_PROBE: Final = AdamParams(learning_rate=1e12, beta1=0.0, beta2=0.0, eps=1e9)
"""With both betas 0 and eps far above every gradient g, a step is -lr / eps · g, here -1000 · g."""


def _sees_batch(logprobs: Any, inputs: Any, config: Any) -> torch.Tensor:
    """Each sequence against the mean of all: no datum's gradient is known before the last logprob is."""
    sums = torch.stack([lp.sum() for lp in logprobs])
    return (sums - sums.mean()).square().sum() / 100


def _of_entropies(logprobs: Any, inputs: Any, config: Any) -> torch.Tensor:
    """Every token's entropy counts, each otherwise."""
    value: torch.Tensor = -logprobs.sum()
    if ENTROPY in inputs:
        value = value - config["entropy_coeff"] * (inputs[ENTROPY] * inputs["per_token"]).sum()
    return value


def _sees_entropies(logprobs: Any, inputs: Any, config: Any) -> torch.Tensor:
    sums = torch.stack([one[ENTROPY].sum() for one in inputs])
    return config["entropy_coeff"] * (sums - sums.mean()).square().sum() / 100


def _shaped(logprobs: Any, inputs: Any, config: Any) -> Any:
    return logprobs


def _not_finite(logprobs: Any, inputs: Any, config: Any) -> Any:
    return logprobs.sum() / 0


def _constant(logprobs: Any, inputs: Any, config: Any) -> Any:
    return torch.ones(())


def _raising(logprobs: Any, inputs: Any, config: Any) -> Any:
    raise KeyError("raised on purpose")


WHOLE: Final = Loss("check_batch", _sees_batch, batch=True)
ENTROPIC: Final = Loss(
    "check_entropy",
    _of_entropies,
    (LossInput("per_token", shape="token"),),
    config=(TEMPERATURE, ENTROPY_COEFF),
    sampling_masks=True,
)
WHOLE_ENTROPIC: Final = Loss(
    "check_batch_entropy", _sees_entropies, config=(TEMPERATURE, ENTROPY_COEFF), batch=True, sampling_masks=True
)
MADE: Final = (WHOLE, ENTROPIC, WHOLE_ENTROPIC)
"""The right ones among the losses that checks make."""
BROKEN: Final = tuple(
    Loss(function.__name__, function, plugin="weaver.testing")
    for function in (_shaped, _not_finite, _constant, _raising)
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A backend with one tiny model, and what its results are compared with."""

    backend: Backend
    factory: BackendFactory
    source: ModelSource
    model: Path
    making: Making
    losses: Mapping[str, Loss]
    tolerance: float

    def one_pass(
        self, model_id: str, loss: Loss, lengths: Sequence[int] = MIXED, *, backward: bool = True, **config: float
    ) -> Pass:
        backward = backward and not loss.forward_only
        return Pass(model_id, self.making.data(loss, lengths), loss, config_of(loss, config), backward)

    def trained(self, model_id: str, lora: LoraSpec = LORA, seed: int = 0) -> ModelState:
        """A model whose adapter has nothing zero in it; its state."""
        self.backend.create_model(model_id, lora)
        state = self.backend.export_state(model_id, optimizer=False)
        rng = np.random.default_rng(seed)
        tensors = {n: rng.normal(0, 0.1, t.shape).astype(np.float32) for n, t in state.adapter.tensors.items()}
        changed = ModelState(replace(state.adapter, tensors=tensors), None)
        self.backend.import_state(model_id, changed)
        return changed

    def run(self, *passes: Pass) -> list[ForwardBackwardResult]:
        """Results of passes that should all succeed."""
        results = list(self.backend.forward_backward(passes))
        assert len(results) == len(passes), f"{len(passes)} passes were given and {len(results)} results came back"
        for result in results:
            assert isinstance(result, ForwardBackwardResult), f"a pass failed that is right: {result!r}"
        return [result for result in results if isinstance(result, ForwardBackwardResult)]

    def gradients(self, model_id: str) -> dict[str, FloatArray]:
        """What has accumulated, measured by a step. Weights are as before then; gradients and optimizer are gone."""
        before = self.backend.export_state(model_id, optimizer=False)
        self.backend.optim_step(model_id, _PROBE)
        after = self.backend.export_state(model_id, optimizer=False).adapter.tensors
        self.backend.import_state(model_id, before)
        return {name: (tensor - after[name]) / np.float32(1000) for name, tensor in before.adapter.tensors.items()}

    def same_gradients(self, found: Tensors, expected: Tensors, tolerance: float | None = None) -> None:
        """Tensor by tensor: the norm of the difference against the norm of what is expected."""
        assert found.keys() == expected.keys(), f"tensors {sorted(found)}; peft names them {sorted(expected)}"
        for name, wanted in expected.items():
            size = float(np.linalg.norm(wanted))
            difference = float(np.linalg.norm(found[name] - wanted)) / (size or 1.0)
            limit = tolerance or self.tolerance
            assert difference <= limit, f"the gradient of {name} is off by {difference:.1e}; {limit:.0e} is allowed"


def agrees_with_peft(bench: Bench, *passes: Pass) -> None:
    """Value, logprobs and every gradient of passes of one model, in one call."""
    [model_id] = {one.model_id for one in passes}
    state = bench.backend.export_state(model_id, optimizer=False)
    reference = TrainingReference(bench.model, state.adapter)
    total: dict[str, FloatArray] = {}
    for one, result in zip(passes, bench.run(*passes), strict=True):
        value, logprobs, gradients = reference.run(one)
        _same_scores(bench, one, result, value, logprobs)
        total = {name: total.get(name, np.float32(0)) + found for name, found in gradients.items()}
    bench.same_gradients(bench.gradients(model_id), total)


def _same_scores(
    bench: Bench, one: Pass, result: ForwardBackwardResult, value: float, logprobs: Sequence[FloatArray]
) -> None:
    named = f"the loss {one.loss.name!r}"
    assert np.isclose(result.metrics["loss:sum"], value, rtol=bench.tolerance, atol=bench.tolerance), (
        f"{named}: its value is {result.metrics['loss:sum']}, by transformers and peft {value}"
    )
    for index, (found, wanted) in enumerate(zip(result.logprobs, logprobs, strict=True)):
        assert found.shape == wanted.shape, f"logprobs of data[{index}] have shape {found.shape}, not {wanted.shape}"
        off = float(np.abs(found - wanted).max())
        assert off <= bench.tolerance, f"{named}: logprobs of data[{index}] are off by {off:.1e}"
