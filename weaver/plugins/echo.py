"""A backend and a sampler named "echo", without torch: the smallest worked example of both contracts.

The backend's model is one bias per vocabulary entry: the logprob of a target is `log_softmax(bias_V)[target]`, whatever
the tokens before it, or over the tokens of its row of a sampling mask. It learns by real AdamW, so a training loop
against it behaves like one. The sampler's model says the prompt over and over. A location like
`echo:vocab=100,context=512` sets their sizes.

Shapes: V vocabulary; n prompt tokens, m = n - 1 those after the first, k likeliest tokens or alternatives.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from weaver.backend import BackendFactory, ModelFacts, ModelSource, Pass
from weaver.domain import (
    AdamParams,
    Adapter,
    AdapterRef,
    Array,
    Datum,
    FloatArray,
    ForwardBackwardResult,
    IntArray,
    LoraSpec,
    ModelState,
    OptimizerState,
    OptimParams,
    PromptAlternatives,
    PromptTargets,
    SampledSequence,
    SampleRequest,
    SampleResult,
    SamplingParams,
    StopReason,
    TargetLogprobs,
    TokenRows,
    TopLogprobs,
)
from weaver.errors import CheckpointDamaged, InvalidInput, WeaverError
from weaver.hookspecs import hookimpl
from weaver.loss import TARGET_TOKENS
from weaver.sampler import SampleFuture, SamplerFactory

END_TOKEN: Final = 0
_TENSOR: Final = "base_model.model.echo.bias"
_SIZES: Final = {"vocab": 256, "context": 1024}


def describe(source: ModelSource) -> ModelFacts:
    """Reads `echo` or `echo:vocab=100,context=512`; token 0 ends a text."""
    sizes = _sizes(source.location)
    return ModelFacts(
        name=source.name,
        architecture="Echo",
        vocabulary_size=sizes["vocab"],
        context_length=sizes["context"],
        end_token_ids=(END_TOKEN,),
        tokenizer_location=source.name,
    )


def _sizes(location: str) -> dict[str, int]:
    kind, _, settings = location.partition(":")
    given = dict(part.partition("=")[::2] for part in settings.split(",") if part)
    if kind != "echo" or not given.keys() <= _SIZES.keys() or not all(value.isdigit() for value in given.values()):
        raise InvalidInput(f"the location {location!r} must look like 'echo:vocab=100,context=512'")
    return _SIZES | {name: int(value) for name, value in given.items()}


@dataclass(slots=True, eq=False)
class _Model:
    """One adapter: its bias, accumulated gradients and optimizer state."""

    lora: LoraSpec
    bias_V: FloatArray
    gradient_V: FloatArray = field(init=False)
    exp_avg_V: FloatArray = field(init=False)
    exp_avg_sq_V: FloatArray = field(init=False)
    step: int = 0

    def __post_init__(self) -> None:
        self.gradient_V, self.exp_avg_V, self.exp_avg_sq_V = (np.zeros_like(self.bias_V) for _ in range(3))


class EchoBackend:
    """The contract `weaver.backend.Backend`, for one bias vector per model."""

    def __init__(self, source: ModelSource) -> None:
        self._facts = describe(source)
        self._models: dict[str, _Model] = {}

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        self._models[model_id] = _Model(lora, np.zeros(self._facts.vocabulary_size, np.float32))

    def drop_model(self, model_id: str) -> None:
        self._models.pop(model_id, None)

    def forward_backward(self, passes: Sequence[Pass]) -> Sequence[ForwardBackwardResult | WeaverError]:
        return [self._run(one) for one in passes]

    def _run(self, one: Pass) -> ForwardBackwardResult | WeaverError:
        """Cross-entropy by its own formula: a loss function needs torch tensors, which this backend does without."""
        if one.loss.name != "cross_entropy":
            return InvalidInput(
                f"loss_fn: the backend 'echo' computes the loss 'cross_entropy' only, not {one.loss.name!r}"
            )
        model = self._models[one.model_id]
        logits_V = model.bias_V / np.float32(one.temperature)
        found = [_scored_targets(logits_V, datum) for datum in one.data]
        if one.backward:
            for _, gradient_V in found:
                model.gradient_V += gradient_V / np.float32(one.temperature)
        logprobs = tuple(each for each, _ in found)
        weights = [datum.loss_fn_inputs["weights"] for datum in one.data]
        loss = -sum(float((lp * weight).sum()) for lp, weight in zip(logprobs, weights, strict=True))
        return ForwardBackwardResult(logprobs, {"loss:sum": loss})

    def optim_step(self, model_id: str, params: OptimParams) -> Mapping[str, float]:
        """AdamW (Loshchilov & Hutter 2019, algorithm 2)."""
        if not isinstance(params, AdamParams):
            raise InvalidInput("the backend 'echo' steps with the optimizer 'adamw' only")
        model = self._models[model_id]
        norm = float(np.linalg.norm(model.gradient_V))
        clip = params.grad_clip_norm / norm if 0 < params.grad_clip_norm < norm else 1.0
        gradient_V = model.gradient_V * np.float32(clip)
        model.step += 1
        model.exp_avg_V += np.float32(1 - params.beta1) * (gradient_V - model.exp_avg_V)
        model.exp_avg_sq_V += np.float32(1 - params.beta2) * (gradient_V**2 - model.exp_avg_sq_V)
        mean_V = model.exp_avg_V / np.float32(1 - params.beta1**model.step)
        deviation_V = np.sqrt(model.exp_avg_sq_V / np.float32(1 - params.beta2**model.step))
        model.bias_V *= np.float32(1 - params.learning_rate * params.weight_decay)
        model.bias_V -= np.float32(params.learning_rate) * mean_V / (deviation_V + np.float32(params.eps))
        model.gradient_V[:] = 0
        return {"grad_norm": norm}

    def export_state(self, model_id: str, *, optimizer: bool) -> ModelState:
        model = self._models[model_id]
        adapter = Adapter(self._facts.name, model.lora, ("echo",), {_TENSOR: model.bias_V.copy()})
        moments = {
            f"{_TENSOR}.exp_avg": model.exp_avg_V.copy(),
            f"{_TENSOR}.exp_avg_sq": model.exp_avg_sq_V.copy(),
        }
        return ModelState(adapter, OptimizerState(model.step, moments) if optimizer else None)

    def import_state(self, model_id: str, state: ModelState) -> None:
        if state.adapter.tensors.keys() != {_TENSOR}:
            raise InvalidInput(f"the backend 'echo' loads {_TENSOR!r} only, and the state has other weights")
        model = _Model(self._models[model_id].lora, state.adapter.tensors[_TENSOR].copy())
        if state.optimizer:
            model.step = state.optimizer.step
            model.exp_avg_V = state.optimizer.tensors[f"{_TENSOR}.exp_avg"].copy()
            model.exp_avg_sq_V = state.optimizer.tensors[f"{_TENSOR}.exp_avg_sq"].copy()
        self._models[model_id] = model

    def close(self) -> None:
        self._models.clear()


def _scored_targets(logits_V: FloatArray, datum: Datum) -> tuple[FloatArray, FloatArray]:
    """The logprobs of a datum's targets, and the gradient of its cross-entropy by the logits."""
    targets, weights = datum.loss_fn_inputs[TARGET_TOKENS].astype(np.int64), datum.loss_fn_inputs["weights"]
    rows = [] if datum.sampling_mask is None else datum.sampling_mask.lists()
    whole = np.array([not (rows and rows[t]) for t in range(len(targets))])
    logprobs_V, logprobs = _log_softmax(logits_V), np.zeros(targets.shape, np.float32)
    logprobs[whole] = logprobs_V[targets[whole]]
    gradient_V = _gradient(logprobs_V, targets[whole], weights[whole])
    for t in np.flatnonzero(~whole):
        kept_V = np.full_like(logits_V, -np.inf)
        kept_V[rows[t]] = logits_V[rows[t]]
        logprobs_V = _log_softmax(kept_V)
        logprobs[t] = logprobs_V[targets[t]]
        gradient_V += _gradient(logprobs_V, targets[t], weights[t])
    return logprobs, gradient_V


def _log_softmax(bias_V: FloatArray) -> FloatArray:
    shifted_V: FloatArray = bias_V - bias_V.max()
    logprobs_V: FloatArray = shifted_V - np.log(np.exp(shifted_V).sum())
    return logprobs_V


def _gradient(logprobs_V: FloatArray, targets: Array, weights: Array) -> FloatArray:
    """Of `-(logprobs_V[targets] * weights).sum()` by the bias: `sum(weights) * softmax - weights at their targets`."""
    gradient_V: FloatArray = np.exp(logprobs_V) * weights.sum()
    np.subtract.at(gradient_V, targets.astype(np.int64), weights)
    return gradient_V


class EchoSampler:
    """The contract `weaver.sampler.Sampler`, for a model that is certain of saying the prompt over and over.

    All probability lies on one token, so temperature, top_k, top_p and seed change nothing; neither does an adapter.
    Where that token may not come, because it stops among the first min_tokens, there is none.
    """

    def __init__(self, source: ModelSource) -> None:
        self._facts = describe(source)

    def sample(self, request: SampleRequest) -> SampleFuture:
        future = SampleFuture()
        try:
            future.set_result(self._sample(request))
        except WeaverError as error:
            future.set_exception(error)
        return future

    def _sample(self, request: SampleRequest) -> SampleResult:
        if request.params.stop_strings:
            raise InvalidInput("sampling_params.stop: the sampler 'echo' has no tokenizer and cannot find stop strings")
        if request.adapter and not request.adapter.folder.is_dir():
            raise CheckpointDamaged(f"the adapter {request.adapter.adapter_id} has no folder {request.adapter.folder}")
        prompt_n, k = request.prompt_n, request.topk_prompt_logprobs
        scored_from = 1 if request.prompt_logprobs_last_n is None else prompt_n.size - request.prompt_logprobs_last_n
        sequence = _continuation(request, self._facts.end_token_ids)
        return SampleResult(
            sequences=(sequence,) * request.num_samples,
            prompt_logprobs_n=_certain(prompt_n.size, scored_from) if request.prompt_logprobs else None,
            topk_prompt_logprobs=_top(prompt_n, k, scored_from) if k else None,
            target_logprobs=_scored(prompt_n, request.prompt_targets) if request.prompt_targets else None,
            prompt_alternatives=_alternatives(prompt_n, request.prompt_alternatives),
        )

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        """No adapter changes what is said."""

    def forget(self, adapter_id: str) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing runs: a sample is drawn by the time `sample` returns."""


def _continuation(request: SampleRequest, end_token_ids: tuple[int, ...]) -> SampledSequence:
    params, k = request.params, request.topk_sample_logprobs
    stops = end_token_ids if params.stop_token_ids is None else params.stop_token_ids
    tokens: IntArray = np.resize(request.prompt_n, params.max_tokens)
    ends = np.flatnonzero(np.isin(tokens, stops))
    if ends.size and ends[0] < params.min_tokens:
        raise InvalidInput(
            f"sampling_params.min_tokens is {params.min_tokens}, but the sampler 'echo' is certain that token "
            f"{int(ends[0]) + 1} is the stop token {int(tokens[ends[0]])}: it has no other"
        )
    length = int(ends[0]) + 1 if ends.size else params.max_tokens
    reason = StopReason.STOP if ends.size else StopReason.LENGTH
    top = _top(tokens[:length], k, 0) if k else None
    mask = _left(tokens[:length], params) if request.sampling_mask else None
    return SampledSequence(tokens[:length], np.zeros(length, np.float32), reason, top, mask)


def _left(tokens: IntArray, params: SamplingParams) -> TokenRows:
    """The one token that can come, where anything else is dropped."""
    cut = bool(params.temperature) and (params.top_k != -1 or params.top_p < 1)
    rows = enumerate(tokens.tolist())
    return TokenRows.of_lists([[token] if cut or place < params.min_tokens else [] for place, token in rows])


def _certain(length: int, scored_from: int) -> FloatArray:
    logprobs_n = np.zeros(length, np.float32)
    logprobs_n[:scored_from] = math.nan
    return logprobs_n


def _top(tokens_n: IntArray, k: int, scored_from: int) -> TopLogprobs:
    """One likeliest token, the one that came; there is no second."""
    token_ids_nk = np.zeros((tokens_n.size, k), np.int32)
    logprobs_nk = np.full((tokens_n.size, k), math.nan, np.float32)
    token_ids_nk[scored_from:, 0] = tokens_n[scored_from:]
    logprobs_nk[scored_from:, 0] = 0.0
    return TopLogprobs(token_ids_nk, logprobs_nk)


def _scored(prompt_n: IntArray, targets: PromptTargets) -> TargetLogprobs:
    came_or_not_asked = (targets.tokens_c == prompt_n[targets.rows_c + 1]) | (targets.tokens_c == -1)
    return TargetLogprobs(targets, np.where(came_or_not_asked, 0.0, -np.inf).astype(np.float32))


def _alternatives(prompt_n: IntArray, k: int) -> PromptAlternatives | None:
    """There are none but the token that came."""
    if not k:
        return None
    tokens_mk = np.repeat(prompt_n[1:, None], k, axis=1)
    return PromptAlternatives(tokens_mk, np.zeros(tokens_mk.shape, np.float32))


@hookimpl
def weaver_backends() -> Iterable[BackendFactory]:
    yield BackendFactory(
        "echo", describe=describe, open=EchoBackend, description="a toy without torch", sampling_masks=True
    )


@hookimpl
def weaver_samplers() -> Iterable[SamplerFactory]:
    yield SamplerFactory("echo", open=EchoSampler, description="says the prompt over and over")
