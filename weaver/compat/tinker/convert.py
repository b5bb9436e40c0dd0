"""From Tinker's requests to weaver's values. Each function raises InvalidInput naming the field it cannot read."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from weaver.compat.tinker import messages, requests
from weaver.compat.tinker.tensors import DENSE_LIMIT, decode_tensor, decode_tokens, flat_positions, sparse_size
from weaver.domain import (
    AdamParams,
    Datum,
    DimuonParams,
    ForwardBackward,
    IntArray,
    LoadState,
    LoraSpec,
    OptimStep,
    PromptTargets,
    ProvenanceSpan,
    SaveExternal,
    SaveForSampler,
    SaveState,
)
from weaver.errors import InvalidInput

_LARGEST_EXTENT: Final = 2**31  # so that a cell's place in the table fits in 64 bits
_SPAN_KINDS: Final = {"prompt_tokens": "prompt", "sampled_tokens": "sampled"}


def forward_backward_message(body: bytes) -> Any:
    """The protobuf message of a forward_backward body, not yet checked."""
    try:
        return messages.ForwardBackwardRequest.FromString(body)
    except DecodeError as error:
        raise InvalidInput(f"the body is not a protobuf ForwardBackwardRequest: {error}") from None


def forward_backward(message: Any) -> ForwardBackward:
    """The operation a protobuf ForwardBackwardRequest asks for."""
    _refuse_unknown(message, "the request")
    _refuse_oversize(message)
    return ForwardBackward(
        data=tuple(_datum(datum, f"data[{index}]") for index, datum in enumerate(message.data)),
        loss=message.loss_fn,
        config=_loss_config(message),
        backward=not message.forward_only,
    )


def _refuse_unknown(message: Any, name: str) -> None:
    """A newer client's field would otherwise be dropped without a word."""
    if unknown := sorted({field.field_number for field in UnknownFieldSet(message)}):
        raise InvalidInput(f"{name} has protobuf fields this server does not know: numbers {unknown}")


def _refuse_oversize(message: Any) -> None:
    size = sum(sparse_size(tensor) for datum in message.data for tensor in datum.loss_fn_inputs.values())
    if size > DENSE_LIMIT:
        raise InvalidInput(
            f"data: the sparse loss_fn_inputs of one request declare {size} elements; at most {DENSE_LIMIT} are read"
        )


def _loss_config(message: Any) -> dict[str, float | str]:
    """The newer map where it is sent; the older one mirrors its numbers and must agree."""
    older, newer = dict(message.loss_fn_config), message.loss_fn_config_v2
    if not newer:
        return older
    config = {key: _config_value(value, key) for key, value in newer.items()}
    for key, number in older.items():
        if not _same(config.get(key), number):
            raise InvalidInput(
                f"loss_fn_config[{key!r}] is {number} in loss_fn_config and {config.get(key)!r} in loss_fn_config_v2"
            )
    return config


def _config_value(value: Any, key: str) -> float | str:
    _refuse_unknown(value, f"loss_fn_config[{key!r}]")
    match value.WhichOneof("value"):
        case "number":
            return float(value.number)
        case "text":
            return str(value.text)
        case _:
            raise InvalidInput(f"loss_fn_config[{key!r}] has no value")


def _same(first: float | str | None, second: float) -> bool:
    return first == second or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


def _datum(message: Any, name: str) -> Datum:
    _refuse_unknown(message, name)
    return Datum(
        tokens_T=_tokens(message.model_input, f"{name}.model_input"),
        loss_fn_inputs={
            key: _loss_input(tensor, f"{name}.loss_fn_inputs[{key!r}]")
            for key, tensor in message.loss_fn_inputs.items()
        },
        token_spans=_spans(message.model_input_spans, f"{name}.model_input_spans"),
        loss_input_spans=_spans(message.loss_fn_input_spans, f"{name}.loss_fn_input_spans"),
    )


def _loss_input(tensor: Any, name: str) -> Any:
    _refuse_unknown(tensor, name)
    if tensor.HasField("sparse_csr"):
        _refuse_unknown(tensor.sparse_csr, name)
    return decode_tensor(tensor, name)


def _tokens(chunks: Any, name: str) -> IntArray:
    parts = [_chunk_tokens(chunk, f"{name}[{index}]") for index, chunk in enumerate(chunks)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _chunk_tokens(chunk: Any, name: str) -> IntArray:
    _refuse_unknown(chunk, name)
    kind = chunk.WhichOneof("chunk")
    if kind != "encoded_text":
        raise InvalidInput(f"{name} is of type {kind or 'nothing'}; this server reads encoded_text only")
    _refuse_unknown(chunk.encoded_text, name)
    return decode_tokens(chunk.encoded_text.tokens, f"{name}.tokens")


def _spans(spans: Any, name: str) -> tuple[ProvenanceSpan, ...]:
    return tuple(_span(span, f"{name}[{index}]") for index, span in enumerate(spans))


def _span(message: Any, name: str) -> ProvenanceSpan:
    kind = message.WhichOneof("span")
    if kind is None:
        raise InvalidInput(f"{name} has neither prompt_tokens nor sampled_tokens")
    span = getattr(message, kind)
    _refuse_unknown(span, name)
    if not span.sequence_id or span.offset < 0 or span.length < 0:
        raise InvalidInput(f"{name} needs a sequence_id, and an offset and a length that are not negative")
    return ProvenanceSpan(_SPAN_KINDS[kind], span.sequence_id, span.offset, span.length)


def prompt_tokens(prompt: requests.Prompt) -> IntArray:
    """The tokens of all chunks in order."""
    return np.array([token for chunk in prompt.chunks for token in chunk.tokens], np.int64)


def prompt_targets(tensor: requests.TargetTokens | None) -> PromptTargets | None:
    """The table of tokens to score; a sparse one stays sparse, however large the shape it declares."""
    if tensor is None:
        return None
    name, shape = "target_prompt_logprobs", tensor.shape or []
    if len(shape) != 2 or min(shape) < 1 or max(shape) > _LARGEST_EXTENT:
        raise InvalidInput(f"{name} has shape {shape}; it must be that of a table, [len(prompt) - 1, K]")
    flat_c = np.arange(len(tensor.data)) if tensor.sparse_crow_indices is None else _sparse_cells(tensor, shape, name)
    if len(tensor.data) != (math.prod(shape) if tensor.sparse_crow_indices is None else flat_c.size):
        raise InvalidInput(f"{name} has shape {shape} and {len(tensor.data)} values, which do not fit together")
    row_c, column_c = np.divmod(flat_c, shape[1])
    tokens_c = _int64(tensor.data, name)
    return PromptTargets((shape[0], shape[1]), row_c, column_c, tokens_c, tensor.sparse_crow_indices is not None)


def _sparse_cells(tensor: requests.TargetTokens, shape: list[int], name: str) -> IntArray:
    """Where the values of a sparse table lie in the dense one, in ascending order."""
    starts = _int64(tensor.sparse_crow_indices or [], f"{name}.sparse_crow_indices")
    columns = _int64(tensor.sparse_col_indices or [], f"{name}.sparse_col_indices")
    flat_c = flat_positions(starts, columns, (shape[0], shape[1]), name)
    if (np.diff(flat_c) < 0).any():
        raise InvalidInput(f"{name}.sparse_col_indices must ascend within each row")
    return flat_c


def _int64(numbers: list[int], name: str) -> IntArray:
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        raise InvalidInput(f"{name} holds a number that does not fit in 64 bits") from None


def stop_conditions(stop: list[int] | list[str] | None) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """The stop token ids (None: the model's own end tokens) and the stop strings that a `stop` field asks for.

    Absent: the model's end tokens. Token ids replace them, so `[]` never stops. Strings come beside them: a renderer
    that stops at `"\\n\\nUser:"` still expects a model that ends its turn by its end token to be cut there, and reads
    that as a turn ended properly (tinker-cookbook, `ParseTermination.EOS`).
    """
    if stop is None:
        return None, ()
    ids = tuple(item for item in stop if isinstance(item, int))
    strings = tuple(item for item in stop if isinstance(item, str))
    return (None if strings else ids), strings


def lora_spec(config: requests.LoraConfig | None) -> LoraSpec:
    """Without a config, Tinker's defaults, which are ours. Alpha is not on this wire."""
    return LoraSpec(**_given(config)) if config else LoraSpec()


def optim_step(request: requests.OptimStep) -> OptimStep:
    if request.optimizer_params is not None:
        return OptimStep(DimuonParams(**_given(request.optimizer_params)))
    assert request.adam_params is not None
    return OptimStep(AdamParams(**_given(request.adam_params)))


def save_state(request: requests.SaveWeights) -> SaveState:
    return SaveState(request.path, request.overwrite, request.ttl_seconds, request.user_metadata)


def save_external(request: requests.SaveWeightsExternal) -> SaveExternal:
    recipients = request.age_encryption_recipients
    return SaveExternal(request.path, request.ttl_seconds, None if recipients is None else tuple(recipients))


def save_for_sampler(request: requests.SaveWeightsForSampler) -> SaveForSampler:
    return SaveForSampler(request.path, request.ttl_seconds, request.user_metadata, request.kind == "inflight")


def load_state(request: requests.LoadWeights) -> LoadState:
    return LoadState(request.path, request.optimizer)


def _given(body: requests.Computing) -> Mapping[str, Any]:
    return body.model_dump(exclude_none=True, exclude={"type"})
