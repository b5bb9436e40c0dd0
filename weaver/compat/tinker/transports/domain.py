"""From what users hand over to weaver's values, and back: arrays stay arrays. Raises InvalidInput naming the field."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from weaver.compat.tinker import convert, requests, types
from weaver.compat.tinker.tensors import DENSE_LIMIT
from weaver.compat.tinker.transports.contract import Pass, SampleAsk
from weaver.compat.tinker.types.sample_response import MASK_LOGPROB, TopkLogprobs
from weaver.domain import (
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    IntArray,
    ProvenanceSpan,
    SampledSequence,
    SampleResult,
    TargetLogprobs,
    TopLogprobs,
)
from weaver.errors import InvalidInput

_OUTPUT_TYPE: Final = "ArrayRecord"
_POINTER: Final = "an image_asset_pointer is for sampling only: training reads no images from elsewhere"
_TEXT_ONLY: Final = "this service reads encoded_text only"


def forward_backward(asked: Pass) -> ForwardBackward:
    """The operation, with arrays of its own: what the caller does with theirs later does not matter."""
    if any(
        isinstance(chunk, types.ImageAssetPointerChunk) for datum in asked.data for chunk in datum.model_input.chunks
    ):
        raise ValueError(_POINTER)
    return ForwardBackward(
        data=tuple(_datum(datum, f"data[{index}]") for index, datum in enumerate(asked.data)),
        loss=asked.loss_fn,
        config={key: _config(value, key) for key, value in asked.loss_fn_config.items()},
        backward=not asked.forward_only,
    )


def _config(value: Any, key: str) -> float | str:
    if isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInput(f"loss_fn_config[{key!r}] is {value!r}; it must be a number or a string") from None


def _datum(datum: types.Datum, name: str) -> Datum:
    return Datum(
        tokens_T=tokens(datum.model_input, f"{name}.model_input"),
        loss_fn_inputs={
            key: _array(value, f"{name}.loss_fn_inputs[{key!r}]") for key, value in datum.loss_fn_inputs.items()
        },
        token_spans=_spans(datum.model_input_spans),
        loss_input_spans=_spans(datum.loss_fn_input_spans),
    )


def tokens(model_input: types.ModelInput, name: str) -> IntArray:
    """Of all chunks in order."""
    parts: list[IntArray] = []
    for index, chunk in enumerate(model_input.chunks):
        if not isinstance(chunk, types.EncodedTextChunk):
            raise InvalidInput(f"{name}[{index}] is of type {chunk.type}: {_TEXT_ONLY}")
        parts.append(_token_ids(chunk.tokens, f"{name}[{index}]"))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _token_ids(ids: Sequence[int], name: str) -> IntArray:
    """Raises OverflowError beyond what the wire could carry, as the vendor's SDK does."""
    found = np.array(ids, np.int64)
    if found.size and not (found.min() >= -(2**31) and found.max() < 2**31):
        raise OverflowError(f"{name} has a token id that does not fit in 32 bits")
    return found


def _array(tensor: types.TensorData, name: str) -> Any:
    shape = tensor.shape
    if tensor.sparse_crow_indices is not None and shape is not None and int(np.prod(shape)) > DENSE_LIMIT:
        raise InvalidInput(f"{name} declares the shape {shape}: at most {DENSE_LIMIT} elements are read")
    try:
        return np.array(tensor.to_numpy())
    except (AssertionError, IndexError, ValueError) as error:
        raise InvalidInput(f"{name}: {error}") from error


def _spans(spans: types.ProvenanceSpans | None) -> tuple[ProvenanceSpan, ...]:
    return tuple(_span(span) for span in spans or ())


def _span(span: types.PromptProvenanceSpan | types.SampledProvenanceSpan) -> ProvenanceSpan:
    kind = "prompt" if isinstance(span, types.PromptProvenanceSpan) else "sampled"
    return ProvenanceSpan(kind, span.sequence_id, span.offset, span.length)


def forward_backward_output(result: ForwardBackwardResult) -> types.ForwardBackwardOutput:
    outputs = [{name: types.TensorData.from_numpy(array) for name, array in fields.items()} for fields in result.fields]
    return types.ForwardBackwardOutput(_OUTPUT_TYPE, outputs, dict(result.metrics))


def sample_arguments(ask: SampleAsk) -> dict[str, Any]:
    """What `Service.sample` is called with."""
    params = requests.parse(requests.SamplingParams, _given(ask.sampling_params))
    stop_token_ids, stop_strings = convert.stop_conditions(params.stop)
    targets = None
    if ask.target_prompt_logprobs is not None:
        tensor = ask.target_prompt_logprobs
        fields = ("data", "dtype", "shape", "sparse_crow_indices", "sparse_col_indices")
        raw = {field: getattr(tensor, field) for field in fields}
        targets = convert.prompt_targets(requests.parse(requests.TargetTokens, raw))
    return {
        "prompt": tokens(ask.prompt, "prompt.chunks"),
        "num_samples": ask.num_samples,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "seed": params.seed,
        "stop_token_ids": stop_token_ids,
        "stop_strings": stop_strings,
        "prompt_logprobs": ask.prompt_logprobs,
        "topk_prompt_logprobs": ask.topk_prompt_logprobs,
        "prompt_logprobs_last_n": ask.prompt_logprobs_last_n,
        "prompt_targets": targets,
        "prompt_alternatives": ask.prompt_alt_tokens_k,
        "topk_sample_logprobs": ask.topk_sample_logprobs,
        "record_stability_info": ask.record_stability_info,
    }


def _given(params: types.SamplingParams) -> dict[str, Any]:
    """As JSON has it: lists, and numbers that are not finite stay what they are."""
    found = params.model_dump()
    if found["stop"] is not None and not isinstance(found["stop"], str):
        found["stop"] = list(found["stop"])
    return {name: value for name, value in found.items() if value is not None}


def sample_response(result: SampleResult) -> types.SampleResponse:
    """Sequences have no ids yet."""
    alternatives = result.prompt_alternatives
    return types.SampleResponse(
        sequences=[_sequence(one) for one in result.sequences],
        prompt_logprobs_np=result.prompt_logprobs_n,
        topk_prompt_logprobs_np=_topk(result.topk_prompt_logprobs),
        target_prompt_logprobs=None if result.target_logprobs is None else _targets(result.target_logprobs),
        prompt_cache_hit_tokens=result.cached_prompt_tokens,
        prompt_alt_tokens=None
        if alternatives is None
        else types.PromptAltTokens(
            types.TensorData.from_numpy(alternatives.tokens_mk),
            types.TensorData.from_numpy(alternatives.logprobs_mk),
        ),
    )


def _sequence(sequence: SampledSequence) -> types.SampledSequence:
    has_tokens = len(sequence.tokens) > 0  # without any, the wire has no logprobs
    return types.SampledSequence(
        stop_reason=sequence.stop_reason.value,
        sequence_id="",
        tokens_np=np.asarray(sequence.tokens, np.int32),
        logprobs_np=np.asarray(sequence.logprobs, np.float32) if has_tokens else None,
        topk_logprobs_np=_topk(sequence.top_logprobs),
    )


def _topk(table: TopLogprobs | None) -> TopkLogprobs | None:
    if table is None:
        return None
    empty = np.isnan(table.logprobs_nk)
    ids = np.where(empty, 0, table.token_ids_nk).astype(np.int32)
    return TopkLogprobs(ids, np.where(empty, MASK_LOGPROB, table.logprobs_nk).astype(np.float32))


def _targets(result: TargetLogprobs) -> types.TensorData:
    """In the layout in which the targets were given."""
    targets, logprobs_c = result.targets, np.asarray(result.logprobs_c, np.float32)
    if not targets.is_sparse:
        return types.TensorData.from_numpy(logprobs_c.reshape(targets.shape))
    starts = np.searchsorted(targets.rows_c, np.arange(targets.shape[0] + 1))
    return types.TensorData(
        data=logprobs_c,
        dtype="float32",
        shape=list(targets.shape),
        sparse_crow_indices=starts.tolist(),
        sparse_col_indices=targets.columns_c.tolist(),
    )
