"""From weaver's results and records to Tinker's answers: protobuf for passes and samples, JSON for the rest."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np

from weaver.compat.tinker import messages
from weaver.compat.tinker.messages import DType
from weaver.domain import (
    DIMUON,
    CustomLossCreated,
    FloatArray,
    ForwardBackwardResult,
    LoraSpec,
    ModelCreated,
    OptimStepResult,
    PromptTargets,
    SampledSequence,
    SampleResult,
    SamplerReady,
    StateLoaded,
    StateSaved,
    StopReason,
    TargetLogprobs,
    TopLogprobs,
)
from weaver.service.records import (
    CheckpointInfo,
    Completion,
    ModelInfo,
    SamplerInfo,
    SampleTicket,
    SupportedModel,
    Ticket,
)

Json = dict[str, Any]

# How this wire marks a cell of a top-k table that holds nothing.
_EMPTY_TOKEN: Final = 0
_EMPTY_LOGPROB: Final = -99999.0

_LITTLE: Final = {DType.FLOAT32: "<f4", DType.INT64: "<i8"}
RECORD_TYPE: Final = "ArrayRecord"
_STOP_REASONS: Final = {StopReason.STOP: messages.StopReason.STOP, StopReason.LENGTH: messages.StopReason.LENGTH}


def forward_backward_output(result: ForwardBackwardResult) -> bytes:
    """Protobuf: each run of consecutive datums with equal trailing shapes becomes one record."""
    output = messages.ForwardBackwardOutput(loss_fn_output_type=RECORD_TYPE, metrics=result.metrics)
    for shapes, run in groupby(result.fields, key=_trailing_shapes):
        output.loss_fn_outputs.append(_record(list(run), shapes))
    return bytes(output.SerializeToString())


def is_ragged(result: ForwardBackwardResult) -> bool:
    """Whether its data differ in how many targets a token has, so that they take several records."""
    return len({array.shape[1:] for array in result.logprobs}) > 1


def _trailing_shapes(fields: Mapping[str, FloatArray]) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in fields.items()}


def _record(run: Sequence[Mapping[str, FloatArray]], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    record = messages.ArrayRecord(type_tag=RECORD_TYPE, num_datums=len(run))
    for name, trailing_shape in shapes.items():
        arrays, field = [fields[name] for fields in run], record.fields[name]
        field.data = b"".join(_bytes(array, "<f4") for array in arrays)
        field.offsets = _bytes(np.cumsum([0, *(array.size * 4 for array in arrays)]), "<i8")
        field.dtype = DType.FLOAT32
        field.trailing_shape.extend(trailing_shape)
    return record


def sample_response(result: SampleResult) -> bytes:
    """Protobuf; a prompt logprob that does not exist is NaN."""
    response = messages.SampleResponse()
    for sequence in result.sequences:
        _add_sequence(response, sequence)
    if result.prompt_logprobs_n is not None:
        response.prompt_logprobs = _bytes(result.prompt_logprobs_n, "<f4")
    if result.topk_prompt_logprobs is not None:
        response.topk_prompt_logprobs.CopyFrom(_topk(result.topk_prompt_logprobs))
    if result.target_logprobs is not None:
        response.target_prompt_logprobs.CopyFrom(_target_logprobs(result.target_logprobs))
    if result.prompt_alternatives is not None:
        response.prompt_alt_tokens.tokens.CopyFrom(_dense(result.prompt_alternatives.tokens_mk, DType.INT64))
        response.prompt_alt_tokens.logprobs.CopyFrom(_dense(result.prompt_alternatives.logprobs_mk, DType.FLOAT32))
    response.prompt_cache_hit_tokens = result.cached_prompt_tokens
    return bytes(response.SerializeToString())


def _add_sequence(response: Any, sequence: SampledSequence) -> None:
    added = response.sequences.add(
        stop_reason=_STOP_REASONS[sequence.stop_reason],
        tokens=_bytes(sequence.tokens, "<i4"),
        logprobs=_bytes(sequence.logprobs, "<f4"),
    )
    if sequence.top_logprobs is not None:
        added.topk_sampled_logprobs.CopyFrom(_topk(sequence.top_logprobs))


def _topk(table: TopLogprobs) -> Any:
    empty = np.isnan(table.logprobs_nk)
    length, k = table.logprobs_nk.shape
    return messages.TopkLogprobs(
        token_ids=_bytes(np.where(empty, _EMPTY_TOKEN, table.token_ids_nk), "<i4"),
        logprobs=_bytes(np.where(empty, _EMPTY_LOGPROB, table.logprobs_nk), "<f4"),
        k=k,
        length=length,
    )


def _target_logprobs(result: TargetLogprobs) -> Any:
    """In the layout in which the targets were given."""
    targets = result.targets
    if not targets.is_sparse:
        return _dense(result.logprobs_c.reshape(targets.shape), DType.FLOAT32)
    return messages.Tensor(
        sparse_csr=messages.SparseCsr(
            values=_bytes(result.logprobs_c, "<f4"),
            crow_indices=_bytes(row_starts(targets), "<i8"),
            col_indices=_bytes(targets.columns_c, "<i8"),
        ),
        dtype=DType.FLOAT32,
        shape=targets.shape,
    )


def row_starts(targets: PromptTargets) -> Any:
    """Where each row of a sparse table begins among its cells."""
    return np.searchsorted(targets.rows_c, np.arange(targets.shape[0] + 1))


def _dense(array: Any, dtype: DType) -> Any:
    return messages.Tensor(dense=_bytes(array, _LITTLE[dtype]), dtype=dtype, shape=array.shape)


def _bytes(array: Any, dtype: str) -> bytes:
    return bytes(np.ascontiguousarray(array, dtype).tobytes())


def result_json(
    result: OptimStepResult | ModelCreated | StateSaved | StateLoaded | SamplerReady | CustomLossCreated,
) -> Json:
    """The JSON of every result that is not protobuf. None has a key `error`, `status` or `type`: those mean failure or
    "ask again" to a client that polls."""
    match result:
        case OptimStepResult(metrics=metrics):
            return {"metrics": _json_numbers(metrics)}
        case ModelCreated(model_id=model_id):
            return {"model_id": model_id}
        case StateSaved(path=path):
            return {"path": path}
        case StateLoaded(model_id=model_id, path=path):
            return {"model_id": model_id, "path": path}
        case SamplerReady(sampling_session_id=sampling_session_id):
            return {"sampling_session_id": sampling_session_id}
        case CustomLossCreated(loss_id=loss_id):
            return {"loss_id": loss_id}


def _json_numbers(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no NaN or infinity; as in protobuf's JSON they are strings, which clients read as floats."""
    return {name: number if math.isfinite(number) else _name(number) for name, number in numbers.items()}


def _name(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def promise(ticket: Ticket) -> Json:
    return {"request_id": ticket.request_id, "model_id": ticket.model_id}


def sample_promise(ticket: SampleTicket) -> Json:
    return {"request_id": ticket.request_id, "sample_sequence_ids": list(ticket.sequence_ids)}


def still_waiting(request_id: str, reason: str | None) -> Json:
    """For a poll that ended first. The SDK tells its user why a request is paused, if it stays so."""
    if reason is None:
        return {"detail": f"{request_id} runs, or will in its turn", "queue_state": "active"}
    told = {"queue_state": "paused_capacity", "queue_state_reason": reason}
    return {"detail": f"{request_id} waits: {reason}"} | told


def completions(settled: Iterable[Completion], cursor: int) -> Json:
    states = [{"request_id": each.request_id, "state": "finished" if each.succeeded else "failed"} for each in settled]
    return {"completions": states, "cursor": cursor}


def model_info(info: ModelInfo) -> Json:
    return {
        "type": "get_info",
        "model_id": info.model_id,
        "model_name": info.base_model,
        "model_data": {
            "arch": info.architecture,
            "model_name": info.base_model,
            "tokenizer_id": info.tokenizer_location,
        },
        "optimizer_config": _optimizer_config(info.optimizer),
        "is_lora": True,
        "lora_rank": info.lora.rank,
        "lora_config": {"rank": info.lora.rank, "alpha": info.lora.alpha, "seed": info.lora.seed}
        | _trained(info.lora)
        | ({"only_modules": list(info.lora.only_modules)} if info.lora.only_modules else {}),
    }


def weights_info(info: CheckpointInfo) -> Json:
    return {
        "base_model": info.base_model,
        "is_lora": True,
        "lora_rank": info.lora.rank,
        "optimizer_config": _optimizer_config(info.optimizer),
    } | _trained(info.lora)


def _optimizer_config(kind: str) -> Json:
    return {"type": kind} | ({"version": 1} if kind == DIMUON else {})


def _trained(lora: LoraSpec) -> Json:
    return {"train_mlp": lora.train_mlp, "train_attn": lora.train_attn, "train_unembed": lora.train_unembed}


def sampler_info(info: SamplerInfo) -> Json:
    return {"sampler_id": info.sampling_session_id, "base_model": info.base_model, "model_path": info.model_path}


def capabilities(models: Iterable[SupportedModel]) -> Json:
    return {
        "supported_models": [
            {
                "model_name": model.name,
                "max_context_length": model.context_length,
                "trainable": True,
                "sampleable": True,
            }
            for model in models
        ]
    }
