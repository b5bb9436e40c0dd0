"""From what users hand over to the wire's protobuf, and from its answers to what users get."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np

from weaver.compat.tinker import messages, types
from weaver.compat.tinker.messages import DType
from weaver.compat.tinker.transports.contract import Pass
from weaver.compat.tinker.types.sample_response import TopkLogprobs

_DTYPES: Final = {"float32": DType.FLOAT32, "int64": DType.INT64}
_NUMPY: Final = {DType.FLOAT32: "<f4", DType.INT64: "<i8", DType.INT32: "<i4", DType.BFLOAT16: "<u2"}
_STOP_REASONS: Final[Mapping[int, Literal["stop", "length"]]] = {
    messages.StopReason.STOP: "stop",
    messages.StopReason.LENGTH: "length",
}


def forward_backward_request(asked: Pass) -> Any:
    """All but `model_id` and `seq_id`. Raises ValueError for what this wire cannot carry."""
    request = messages.ForwardBackwardRequest(loss_fn=asked.loss_fn, forward_only=asked.forward_only)
    for datum in asked.data:
        _write_datum(request.data.add(), datum)
    for key, value in asked.loss_fn_config.items():
        if isinstance(value, str):
            request.loss_fn_config_v2[key].text = value
        else:
            request.loss_fn_config[key] = request.loss_fn_config_v2[key].number = float(value)
    return request


def _write_datum(message: Any, datum: types.Datum) -> None:
    for chunk in datum.model_input.chunks:
        _write_chunk(message.model_input.add(), chunk)
    for name, tensor in datum.loss_fn_inputs.items():
        _write_tensor(message.loss_fn_inputs[name], tensor)
    for spans, written in (
        (datum.model_input_spans, message.model_input_spans),
        (datum.loss_fn_input_spans, message.loss_fn_input_spans),
    ):
        for span in spans or ():
            is_prompt = isinstance(span, types.PromptProvenanceSpan)
            target = getattr(written.add(), "prompt_tokens" if is_prompt else "sampled_tokens")
            target.sequence_id, target.offset, target.length = span.sequence_id, span.offset, span.length


def _write_chunk(message: Any, chunk: types.ModelInputChunk) -> None:
    match chunk:
        case types.EncodedTextChunk():
            message.encoded_text.tokens = _token_bytes(chunk.tokens)
        case types.ImageChunk():
            message.image.data, message.image.format = chunk.data, chunk.format
            if chunk.expected_tokens is not None:
                message.image.expected_tokens = chunk.expected_tokens
        case types.DmelChunk():
            message.dmel.dmel = chunk.dmel
        case _:
            raise ValueError(
                f"a chunk of type {chunk.type} is for sampling only: training cannot read what it points to"
            )


def _token_bytes(tokens: Any) -> bytes:
    found = np.array(tokens, np.int64)
    if found.size and not (found.min() >= -(2**31) and found.max() < 2**31):
        raise OverflowError("a token id does not fit in 32 bits")
    return found.astype("<i4").tobytes()


def _write_tensor(message: Any, tensor: types.TensorData) -> None:
    message.dtype = _DTYPES[tensor.dtype]
    little = _NUMPY[message.dtype]
    if tensor.shape is not None:
        message.shape.extend(tensor.shape)
    if tensor.sparse_crow_indices is None:
        message.dense = np.ascontiguousarray(tensor.to_numpy(), little).tobytes()
        return
    message.sparse_csr.values = np.asarray(tensor.data, little).tobytes()
    message.sparse_csr.crow_indices = np.asarray(tensor.sparse_crow_indices, "<i8").tobytes()
    message.sparse_csr.col_indices = np.asarray(tensor.sparse_col_indices, "<i8").tobytes()


def forward_backward_output(body: bytes) -> types.ForwardBackwardOutput:
    message = messages.ForwardBackwardOutput.FromString(body)
    outputs = [output for record in message.loss_fn_outputs for output in _read_record(record)]
    kind = str(message.loss_fn_output_type).rpartition(":")[2]
    return types.ForwardBackwardOutput(kind, outputs, dict(message.metrics))


def _read_record(record: Any) -> list[dict[str, types.TensorData]]:
    outputs: list[dict[str, types.TensorData]] = [{} for _ in range(record.num_datums)]
    for name, field in record.fields.items():
        offsets = np.frombuffer(field.offsets, "<i8")
        for index, output in enumerate(outputs):
            values = _read_array(field.data[offsets[index] : offsets[index + 1]], field.dtype)
            output[name] = types.TensorData.from_numpy(values.reshape(-1, *field.trailing_shape))
    return outputs


def _read_array(raw: bytes, dtype: int) -> Any:
    values = np.frombuffer(raw, _NUMPY[DType(dtype)])
    if dtype == DType.BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.copy()


def _read_tensor(message: Any) -> types.TensorData:
    if message.WhichOneof("encoding") == "dense":
        return types.TensorData.from_numpy(_read_array(message.dense, message.dtype).reshape(tuple(message.shape)))
    csr, values = message.sparse_csr, _read_array(message.sparse_csr.values, message.dtype)
    return types.TensorData(
        data=values,
        dtype="float32" if values.dtype.kind == "f" else "int64",
        shape=list(message.shape),
        sparse_crow_indices=np.frombuffer(csr.crow_indices, "<i8").tolist(),
        sparse_col_indices=np.frombuffer(csr.col_indices, "<i8").tolist(),
    )


def sample_response(body: bytes) -> types.SampleResponse:
    """Sequences have no ids yet."""
    message = messages.SampleResponse.FromString(body)
    has = message.HasField
    return types.SampleResponse(
        sequences=[_read_sequence(one) for one in message.sequences],
        prompt_logprobs_np=np.frombuffer(message.prompt_logprobs, "<f4") if has("prompt_logprobs") else None,
        topk_prompt_logprobs_np=_read_topk(message.topk_prompt_logprobs) if has("topk_prompt_logprobs") else None,
        target_prompt_logprobs=_read_tensor(message.target_prompt_logprobs) if has("target_prompt_logprobs") else None,
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
        prompt_alt_tokens=types.PromptAltTokens(
            _read_tensor(message.prompt_alt_tokens.tokens), _read_tensor(message.prompt_alt_tokens.logprobs)
        )
        if has("prompt_alt_tokens")
        else None,
    )


def _read_sequence(message: Any) -> types.SampledSequence:
    return types.SampledSequence(
        stop_reason=_STOP_REASONS[message.stop_reason],
        sequence_id="",
        tokens_np=np.frombuffer(message.tokens, "<i4"),
        logprobs_np=np.frombuffer(message.logprobs, "<f4") if message.logprobs else None,
        topk_logprobs_np=_read_topk(message.topk_sampled_logprobs)
        if message.HasField("topk_sampled_logprobs")
        else None,
    )


def _read_topk(message: Any) -> TopkLogprobs:
    shape = (message.length, message.k)
    ids, logprobs = np.frombuffer(message.token_ids, "<i4"), np.frombuffer(message.logprobs, "<f4")
    return TopkLogprobs(ids.reshape(shape), logprobs.reshape(shape))
