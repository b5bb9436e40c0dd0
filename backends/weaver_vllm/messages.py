"""What is asked of the engine's side, and what it answers, as messages."""

from typing import Any

from weaver.domain import (
    PromptAlternatives,
    SampledSequence,
    SampleRequest,
    SampleResult,
    StopReason,
    TargetLogprobs,
    TopLogprobs,
)
from weaver_vllm.engine_side.frames import Message
from weaver_vllm.masks import mask_of


def sample(number: int, request: SampleRequest) -> Message:
    adapter, follows, params, targets = request.adapter, request.inflight, request.params, request.prompt_targets
    return {
        "do": "sample",
        "id": number,
        "prompt": request.prompt_n,
        "samples": request.num_samples,
        "params": {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "seed": params.seed,
            "stop_token_ids": None if params.stop_token_ids is None else list(params.stop_token_ids),
            "stop_strings": list(params.stop_strings),
            "min_tokens": params.min_tokens,
        },
        "adapter": None if adapter is None else {"id": adapter.adapter_id, "folder": str(adapter.folder)},
        "inflight": None
        if follows is None
        else {"model_id": follows.model_id, "version": follows.version, "session_id": follows.session_id},
        "prompt_logprobs": request.prompt_logprobs,
        "topk_prompt_logprobs": request.topk_prompt_logprobs,
        "prompt_logprobs_last_n": request.prompt_logprobs_last_n,
        "prompt_temperature": request.prompt_temperature,
        "targets": None if targets is None else {"rows": targets.rows_c, "tokens": targets.tokens_c},
        "alternatives": request.prompt_alternatives,
        "topk_sample_logprobs": request.topk_sample_logprobs,
    }


def result(request: SampleRequest, found: Message) -> SampleResult:
    """The answer to `request`."""
    targets = request.prompt_targets
    return SampleResult(
        sequences=tuple(_sequence(request, one) for one in found["sequences"]),
        prompt_logprobs_n=found["prompt_logprobs"] if request.prompt_logprobs else None,
        topk_prompt_logprobs=TopLogprobs(found["prompt_top_tokens"], found["prompt_top_logprobs"])
        if request.topk_prompt_logprobs
        else None,
        target_logprobs=None if targets is None else TargetLogprobs(targets, found["target_logprobs"]),
        prompt_alternatives=PromptAlternatives(found["alternative_tokens"], found["alternative_logprobs"])
        if request.prompt_alternatives
        else None,
        cached_prompt_tokens=found["cached"],
    )


def _sequence(request: SampleRequest, one: dict[str, Any]) -> SampledSequence:
    top = TopLogprobs(one["top_tokens"], one["top_logprobs"]) if request.topk_sample_logprobs else None
    reason = StopReason.STOP if one["stopped"] else StopReason.LENGTH
    return SampledSequence(one["tokens"], one["logprobs"], reason, top, mask_of(request, len(one["tokens"])))
