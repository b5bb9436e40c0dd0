"""What is not drawn by servers that weaver is attached to, because it would not be exactly what was asked for."""

from typing import Final

from weaver.domain import ModelFacts, SampleRequest
from weaver.errors import InvalidInput
from weaver_vllm.attached_base import Base
from weaver_vllm.attached_folders import adapts_output_layer
from weaver_vllm.attached_server import ServerFacts
from weaver_vllm.attached_wire import asks_of_prompt
from weaver_vllm.masks import refuse_masks

TEMPERATURES: Final = (0.01, 2.0)
"""Beside 0. vLLM's server raises what is below to the first, and refuses what is above the second."""
OWN_ENGINE: Final = "Sample with weaver's own engine: weaver serve --sampler vllm without --vllm-url"


def refuse(request: SampleRequest) -> None:
    """Raises InvalidInput for what vLLM's HTTP interface has no words for, however it was started."""
    params, low, high = request.params, *TEMPERATURES
    if request.prompt_targets is not None:
        raise _cannot("target_prompt_logprobs asks for tokens that vLLM's HTTP interface does not score")
    if request.prompt_alternatives:
        raise _cannot("prompt_alt_tokens_k asks for draws that vLLM's HTTP interface does not make")
    if asks_of_prompt(request) and request.prompt_temperature != 1:
        raise _cannot(
            f"loss_fn_config['temperature'] is {request.prompt_temperature}; vLLM's HTTP interface scores prompts at 1"
        )
    refuse_masks(request)
    if request.inflight is not None:
        raise _cannot(
            "inflight: vLLM's HTTP interface cannot give new weights to requests that run. Save without inflight"
        )
    if params.temperature and not low <= params.temperature <= high:
        raise _cannot(
            f"sampling_params.temperature is {params.temperature}; vLLM's HTTP interface takes 0 (greedy), or {low} "
            f"to {high}"
        )


def refuse_beyond(request: SampleRequest, facts: ServerFacts, model: ModelFacts) -> None:
    """Raises InvalidInput for what the servers were not started for. vLLM would cut some of it, and leave out other."""
    length, most = len(request.prompt_n), model.vocabulary_size if facts.max_logprobs == -1 else facts.max_logprobs
    if length + request.params.max_tokens > facts.context_length:
        raise InvalidInput(
            f"the prompt's {length} tokens and sampling_params.max_tokens {request.params.max_tokens} are more than "
            f"the {facts.context_length} that the vLLM servers were started for; their operator may raise "
            "--max-model-len"
        )
    for name, k in (
        ("topk_sample_logprobs", request.topk_sample_logprobs),
        ("topk_prompt_logprobs", request.topk_prompt_logprobs),
    ):
        if k > most:
            raise InvalidInput(
                f"{name} is {k}; the vLLM servers were started for {most}; their operator may start them with "
                "--max-logprobs -1"
            )
    if request.params.stop_strings and not facts.has_tokenizer:
        raise InvalidInput(
            "sampling_params.stop: stop strings need a tokenizer, and the vLLM servers were started without: "
            "--skip-tokenizer-init"
        )
    if facts.on_cpu or request.adapter is None or not asks_of_prompt(request):
        return
    if adapts_output_layer(request.adapter):
        raise _cannot(
            "prompt_logprobs: vLLM's HTTP interface would leave out what this adapter changes in the output layer. "
            "Train with train_unembed=False"
        )


def refuse_min_tokens(request: SampleRequest, facts: ServerFacts, base: Base) -> None:
    """Raises InvalidInput where vLLM's server would keep back more than was asked for: the end tokens of the model and
    of its tokenizer, whether they stop or not."""
    stops, ends = request.params.stop_token_ids, set(base.facts.end_token_ids)
    taken = ends | base.tokenizers_ends if facts.has_tokenizer else ends
    kept_back = taken - set(ends if stops is None else stops)
    if request.params.min_tokens and kept_back:
        raise _cannot(
            f"sampling_params.min_tokens: vLLM's HTTP interface would keep the end tokens {sorted(kept_back)} back "
            "too, which are no stop tokens of this request. Make them some, or leave min_tokens out"
        )


def _cannot(what: str) -> InvalidInput:
    return InvalidInput(f"{what}. {OWN_ENGINE}")
