"""Results of passes and samples as JSON, for clients that do not offer to read protobuf.

The fields are named as in protobuf. A logprob that does not exist is null; a number that is not finite is a string, as
in protobuf's JSON ("NaN", "-Infinity"), which clients read as floats.
"""

from typing import Any

import numpy as np
from pydantic_core import to_json

from weaver.compat.tinker.answers import RECORD_TYPE, Json, row_starts
from weaver.domain import ForwardBackwardResult, SampledSequence, SampleResult, TargetLogprobs, TopLogprobs


def forward_backward_output(result: ForwardBackwardResult) -> bytes:
    answer = {
        "loss_fn_output_type": RECORD_TYPE,
        "loss_fn_outputs": [
            {name: _tensor(array, "float32") for name, array in fields.items()} for fields in result.fields
        ],
        "metrics": dict(result.metrics),
    }
    return _encoded(answer)


def sample_response(result: SampleResult) -> bytes:
    """What was not asked for is absent."""
    answer: Json = {
        "type": "sample",
        "sequences": [_sequence(sequence) for sequence in result.sequences],
        "prompt_cache_hit_tokens": result.cached_prompt_tokens,
    }
    if result.prompt_logprobs_n is not None:
        answer["prompt_logprobs"] = [_logprob(value) for value in result.prompt_logprobs_n.tolist()]
    if result.topk_prompt_logprobs is not None:
        answer["topk_prompt_logprobs"] = _top(result.topk_prompt_logprobs)
    if result.target_logprobs is not None:
        answer["target_prompt_logprobs"] = _target_logprobs(result.target_logprobs)
    if result.prompt_alternatives is not None:
        answer["prompt_alt_tokens"] = {
            "tokens": _tensor(result.prompt_alternatives.tokens_mk, "int64"),
            "logprobs": _tensor(result.prompt_alternatives.logprobs_mk, "float32"),
        }
    return _encoded(answer)


def _encoded(answer: Json) -> bytes:
    return to_json(answer, inf_nan_mode="strings")


def _sequence(sequence: SampledSequence) -> Json:
    answer = {
        "stop_reason": sequence.stop_reason.value,
        "tokens": sequence.tokens.tolist(),
        "logprobs": sequence.logprobs.tolist(),
    }
    return answer | ({} if sequence.top_logprobs is None else {"topk_sampled_logprobs": _top(sequence.top_logprobs)})


def _top(table: TopLogprobs) -> list[list[tuple[int, float]] | None]:
    """A row per position: pairs of a token and its logprob, or null where nothing was scored."""
    rows = zip(table.token_ids_nk.tolist(), table.logprobs_nk.tolist(), strict=True)
    return [
        [(token, logprob) for token, logprob in zip(*row, strict=True) if not np.isnan(logprob)] or None for row in rows
    ]


def _target_logprobs(result: TargetLogprobs) -> Json:
    """In the layout in which the targets were given."""
    targets = result.targets
    answer = {"data": result.logprobs_c.tolist(), "dtype": "float32", "shape": list(targets.shape)}
    if not targets.is_sparse:
        return answer
    columns = targets.columns_c.tolist()
    return answer | {"sparse_crow_indices": row_starts(targets).tolist(), "sparse_col_indices": columns}


def _tensor(array: Any, dtype: str) -> Json:
    return {"data": array.ravel().tolist(), "dtype": dtype, "shape": list(array.shape)}


def _logprob(value: float) -> float | None:
    return None if np.isnan(value) else value
