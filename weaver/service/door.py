"""What is checked before anything is accepted. Below the door values are trusted.

Each function raises InvalidInput, whose message names the field and says what it should be. T is a datum's length, K
the number of targets per token, V the vocabulary's size.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from weaver.backend import ModelFacts
from weaver.errors import InvalidInput
from weaver.loss import TARGET_TOKENS, Loss
from weaver.types import (
    AdamParams,
    Array,
    Datum,
    ForwardBackward,
    IntArray,
    LoadState,
    LoraSpec,
    Operation,
    OptimStep,
    SamplingParams,
    SaveForSampler,
    SaveState,
)

MAXIMUM_RANK = 1024
MAXIMUM_SAMPLES = 16_384
TTL_SECONDS = (3600, 10 * 365 * 86_400)
KINDS = ("weights", "sampler_weights")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def check_operation(operation: Operation, facts: ModelFacts, loss: Loss | None) -> None:
    """Everything about a training operation that can be known before it runs. `loss` is the one it names."""
    match operation:
        case ForwardBackward():
            assert loss is not None
            _check_forward_backward(operation, facts, loss)
        case OptimStep(params=params):
            _check_adam(params)
        case SaveState(name=name, ttl_seconds=ttl):
            _check_name(name)
            _check_ttl(ttl)
        case SaveForSampler(name=name, ttl_seconds=ttl):
            if name is not None:
                _check_name(name)
            _check_ttl(ttl)
        case LoadState(path=path):
            check_training_path(path)


def check_lora(lora: LoraSpec) -> None:
    if not 1 <= lora.rank <= MAXIMUM_RANK:
        raise InvalidInput(f"lora_config.rank is {lora.rank}; it must be from 1 to {MAXIMUM_RANK}")
    if not (lora.train_mlp or lora.train_attn or lora.train_unembed):
        raise InvalidInput("lora_config trains nothing: set train_mlp, train_attn or train_unembed")
    if lora.seed is not None and not -(2**63) <= lora.seed < 2**64:
        raise InvalidInput(f"lora_config.seed is {lora.seed}; it must fit in 64 bits")


def check_prompt(prompt: IntArray, facts: ModelFacts) -> None:
    if len(prompt) == 0:
        raise InvalidInput("prompt is empty; give at least one token")
    _check_tokens("prompt", prompt, facts)


def check_sampling(num_samples: int, topk_prompt_logprobs: int, facts: ModelFacts) -> None:
    if not 1 <= num_samples <= MAXIMUM_SAMPLES:
        raise InvalidInput(f"num_samples is {num_samples}; it must be from 1 to {MAXIMUM_SAMPLES}")
    if not 0 <= topk_prompt_logprobs <= facts.vocabulary_size:
        raise InvalidInput(
            f"topk_prompt_logprobs is {topk_prompt_logprobs}; it must be from 0 to {facts.vocabulary_size}"
        )


def check_sampling_params(params: SamplingParams, facts: ModelFacts) -> None:
    name = "sampling_params"
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise InvalidInput(
            f"{name}.temperature is {params.temperature}; it must be a finite number, 0 (greedy) or more"
        )
    if params.top_k != -1 and params.top_k < 1:
        raise InvalidInput(f"{name}.top_k is {params.top_k}; it must be at least 1, or -1 to keep every token")
    if not 0 < params.top_p <= 1:
        raise InvalidInput(f"{name}.top_p is {params.top_p}; it must be above 0 and at most 1")
    if params.seed is not None and not 0 <= params.seed < 2**64:
        raise InvalidInput(f"{name}.seed is {params.seed}; it must be from 0 to 2^64 - 1")
    for token in params.stop_token_ids or ():
        if not 0 <= token < facts.vocabulary_size:
            raise InvalidInput(f"{name}.stop has the token id {token}; {_vocabulary(facts)}")
    if any(not text for text in params.stop_strings):
        raise InvalidInput(f"{name}.stop has an empty string")


def effective_max_tokens(max_tokens: int | None, prompt_length: int, facts: ModelFacts) -> int:
    """`max_tokens`, or all that the context still holds where it is None. Raises when that is not there."""
    room = facts.context_length - prompt_length
    if max_tokens is None:
        if room < 1:
            raise InvalidInput(
                f"the prompt has {prompt_length} tokens and fills the context of {facts.name!r}, {facts.context_length}"
            )
        return room
    if max_tokens < 1:
        raise InvalidInput(f"sampling_params.max_tokens is {max_tokens}; it must be at least 1")
    if max_tokens > room:
        raise InvalidInput(
            f"Prompt length plus max_tokens exceeds the model's context window: {prompt_length} + {max_tokens} > "
            f"{facts.context_length} of {facts.name!r}; shorten the prompt or lower sampling_params.max_tokens"
        )
    return max_tokens


def check_user_metadata(user_metadata: Mapping[str, str]) -> None:
    for key, value in user_metadata.items():
        if not isinstance(value, str):
            raise InvalidInput(f"user_metadata[{key!r}] is a {type(value).__name__}; give a string")


def parse_path(path: str) -> tuple[str, str, str]:
    """The model id, kind and name of `tinker://<model>/<kind>/<name>`."""
    scheme, separator, rest = path.partition("://")
    parts = rest.split("/")
    right = scheme == "tinker" and separator and len(parts) == 3
    if not right or parts[1] not in KINDS or not NAME.fullmatch(parts[2]):
        raise InvalidInput(f"path {path!r} is not of the form tinker://<training run>/<weights|sampler_weights>/<name>")
    return parts[0], parts[1], parts[2]


def check_training_path(path: str) -> None:
    """Training starts from what save_state wrote; a sampler's snapshot holds no optimizer."""
    if parse_path(path)[1] != "weights":
        raise InvalidInput(
            f"path {path!r} is a sampler's snapshot; training starts from a path that save_state returned"
        )


def _check_forward_backward(operation: ForwardBackward, facts: ModelFacts, loss: Loss) -> None:
    loss.effective_config(operation.config)
    if not operation.data:
        raise InvalidInput("data is empty; give at least one datum")
    for index, datum in enumerate(operation.data):
        where = f"data[{index}]"
        if len(datum.tokens_T) == 0:
            raise InvalidInput(f"{where}.model_input is empty; give at least one token")
        if len(datum.tokens_T) > facts.context_length:
            raise InvalidInput(
                f"{where}.model_input: sequence length {len(datum.tokens_T)} exceeds max sequence length "
                f"{facts.context_length} of {facts.name!r}"
            )
        _check_tokens(f"{where}.model_input", datum.tokens_T, facts)
        _check_inputs(where, datum, facts, loss)


def _check_inputs(where: str, datum: Datum, facts: ModelFacts, loss: Loss) -> None:
    inputs = datum.loss_fn_inputs
    declared = {TARGET_TOKENS: "int64"} | {one.name: one.dtype for one in loss.inputs}
    for name in declared:
        if name not in inputs:
            raise InvalidInput(f"{where}.loss_fn_inputs lacks {name!r}, which the loss {loss.name!r} reads")
    for name, array in inputs.items():
        field = f"{where}.loss_fn_inputs[{name!r}]"
        if name not in declared:
            reads = ", ".join(sorted(declared))
            raise InvalidInput(f"{field} is not read by the loss {loss.name!r}; it reads {reads}. Leave it out.")
        if array.dtype != declared[name]:
            raise InvalidInput(f"{field} has dtype {array.dtype}; the loss {loss.name!r} needs {declared[name]}")
        _check_shape(field, array, inputs[TARGET_TOKENS], len(datum.tokens_T))
        if array.dtype == np.float32 and not np.isfinite(array).all():
            place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
            raise InvalidInput(f"{field} is {array[place]} at {list(place)}; every value must be finite")
    _check_tokens(f"{where}.loss_fn_inputs[{TARGET_TOKENS!r}]", inputs[TARGET_TOKENS], facts)


def _check_shape(field: str, array: Array, targets: Array, length: int) -> None:
    if targets.ndim not in (1, 2) or targets.shape[0] != length or targets.size == 0:
        raise InvalidInput(
            f"target_tokens of {field} has shape {targets.shape}; the model input has {length} tokens, so it must be "
            f"({length},) or ({length}, K)"
        )
    if array.shape != targets.shape:
        raise InvalidInput(f"{field} has shape {array.shape}; it must be that of target_tokens, {targets.shape}")


def _check_tokens(field: str, tokens: Array, facts: ModelFacts) -> None:
    wrong = (tokens < 0) | (tokens >= facts.vocabulary_size)
    if wrong.any():
        place = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        raise InvalidInput(f"{field}{list(place)} is {int(tokens[place])}; {_vocabulary(facts)}")


def _vocabulary(facts: ModelFacts) -> str:
    return f"token ids of {facts.name!r} go from 0 to {facts.vocabulary_size - 1}"


def _check_adam(params: AdamParams) -> None:
    ranges = {
        "learning_rate": (0 <= params.learning_rate < math.inf, "0 or more"),
        "beta1": (0 <= params.beta1 < 1, "at least 0 and below 1"),
        "beta2": (0 <= params.beta2 < 1, "at least 0 and below 1"),
        "eps": (0 < params.eps < math.inf, "above 0: with 0, a weight whose gradients are all zero becomes 0 / 0"),
        "weight_decay": (0 <= params.weight_decay < math.inf, "0 or more"),
        "grad_clip_norm": (0 <= params.grad_clip_norm < math.inf, "0 (off) or more"),
    }
    for name, (right, wanted) in ranges.items():
        if not right:
            raise InvalidInput(f"adam_params.{name} is {getattr(params, name)}; it must be finite and {wanted}")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"the checkpoint name {name!r} must be 1 to 128 letters, digits, '.', '_' or '-', the first not '.' or '-'"
        )


def _check_ttl(ttl_seconds: int | None) -> None:
    low, high = TTL_SECONDS
    if ttl_seconds is not None and not low <= ttl_seconds <= high:
        raise InvalidInput(f"ttl_seconds is {ttl_seconds}; it must be from {low} (an hour) to {high} (ten years)")
