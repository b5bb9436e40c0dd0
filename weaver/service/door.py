"""What is checked before anything is accepted. Below the door values are trusted.

Each function raises InvalidInput, whose message names the field and says what it should be. T is a datum's length, K
the number of targets per token, V the vocabulary's size.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from weaver.backend import ModelFacts
from weaver.domain import (
    OPTIMIZERS,
    AdamParams,
    Array,
    Datum,
    DimuonParams,
    ForwardBackward,
    IntArray,
    LoadState,
    LoraSpec,
    Operation,
    OptimParams,
    OptimStep,
    PromptTargets,
    SampleRequest,
    SamplingParams,
    SaveExternal,
    SaveForSampler,
    SaveState,
)
from weaver.errors import InvalidInput
from weaver.loss import TARGET_TOKENS, Loss, LossInput
from weaver.service import sampling_masks

MAXIMUM_RANK = 1024
MAXIMUM_SAMPLES = 16_384
MAXIMUM_CELLS = 2**27
"""Of one table in one result: a gibibyte of token ids and logprobs."""
TTL_SECONDS = (3600, 10 * 365 * 86_400)
KINDS = ("weights", "sampler_weights", "external_weights")
TARGETS = LossInput(TARGET_TOKENS, "int64")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def check_operation(operation: Operation, facts: ModelFacts, loss: Loss | None) -> None:
    """Everything about a training operation that can be known before it runs. `loss` is the one it names."""
    match operation:
        case ForwardBackward():
            assert loss is not None
            _check_forward_backward(operation, facts, loss)
        case OptimStep(params=params):
            _check_params(params)
        case SaveState(name=name, ttl_seconds=ttl):
            _check_name(name)
            check_ttl(ttl)
        case SaveForSampler(name=name, ttl_seconds=ttl):
            if name is not None:
                _check_name(name)
            check_ttl(ttl)
        case SaveExternal(name=name, ttl_seconds=ttl, recipients=recipients):
            _check_name(name)
            check_ttl(ttl)
            if recipients is not None and not recipients:
                raise InvalidInput("age_encryption_recipients is empty; name one at least, or leave it out")
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


def check_sampling(request: SampleRequest, facts: ModelFacts) -> None:
    """How many samples, and what is asked about them and about the prompt."""
    length, most = len(request.prompt_n), facts.vocabulary_size
    if not 1 <= request.num_samples <= MAXIMUM_SAMPLES:
        raise InvalidInput(f"num_samples is {request.num_samples}; it must be from 1 to {MAXIMUM_SAMPLES}")
    _check_width("topk_prompt_logprobs", request.topk_prompt_logprobs, most, length)
    _check_width("prompt_alt_tokens_k", request.prompt_alternatives, MAXIMUM_CELLS, length)
    _check_width(
        "topk_sample_logprobs", request.topk_sample_logprobs, most, request.num_samples * request.params.max_tokens
    )
    if not 0 < request.prompt_temperature < math.inf:
        raise InvalidInput(
            f"loss_fn_config['temperature'] is {request.prompt_temperature}; it must be above 0 and finite"
        )
    if request.prompt_logprobs_last_n is not None:
        _check_last_n(request.prompt_logprobs_last_n, request, length)
    if request.prompt_targets is not None:
        _check_targets(request.prompt_targets, length, facts)


def _check_width(name: str, k: int, most: int, rows: int) -> None:
    if not 0 <= k <= most:
        raise InvalidInput(f"{name} is {k}; it must be from 0 to {most}")
    if rows * k > MAXIMUM_CELLS:
        raise InvalidInput(f"{name} is {k}, for {rows} tokens: together more than {MAXIMUM_CELLS} values; lower it")


def _check_last_n(last_n: int, request: SampleRequest, length: int) -> None:
    if not request.prompt_logprobs:
        raise InvalidInput("prompt_logprobs_last_n is about prompt_logprobs; set that too")
    if not 1 <= last_n <= length - 1:
        raise InvalidInput(
            f"prompt_logprobs_last_n is {last_n}; for a prompt of {length} tokens it must be from 1 to {length - 1}"
        )


def _check_targets(targets: PromptTargets, length: int, facts: ModelFacts) -> None:
    name = "target_prompt_logprobs"
    if targets.shape[0] != length - 1:
        raise InvalidInput(
            f"{name} has {targets.shape[0]} rows; a prompt of {length} tokens needs {length - 1}: row i is about "
            "position i + 1"
        )
    wrong = (targets.tokens_c < -1) | (targets.tokens_c >= facts.vocabulary_size)
    if wrong.any():
        cell = int(np.flatnonzero(wrong)[0])
        place = [int(targets.rows_c[cell]), int(targets.columns_c[cell])]
        raise InvalidInput(f"{name}{place} is {int(targets.tokens_c[cell])}; {_vocabulary(facts)}, and -1 asks nothing")
    if not (targets.tokens_c >= 0).any():
        raise InvalidInput(f"{name} names no token; leave it out, or give at least one token id")


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
    _check_min_tokens(params, facts)
    if params.seed is not None and not 0 <= params.seed < 2**64:
        raise InvalidInput(f"{name}.seed is {params.seed}; it must be from 0 to 2^64 - 1")
    for token in params.stop_token_ids or ():
        if not 0 <= token < facts.vocabulary_size:
            raise InvalidInput(f"{name}.stop has the token id {token}; {_vocabulary(facts)}")
    if any(not text for text in params.stop_strings):
        raise InvalidInput(f"{name}.stop has an empty string")


def _check_min_tokens(params: SamplingParams, facts: ModelFacts) -> None:
    name, stops = "sampling_params.min_tokens", params.stop_token_ids
    if not 0 <= params.min_tokens <= params.max_tokens:
        raise InvalidInput(f"{name} is {params.min_tokens}; it must be from 0 to max_tokens, {params.max_tokens}")
    stopping = facts.end_token_ids if stops is None else stops
    if params.min_tokens and len(set(stopping)) >= facts.vocabulary_size:
        raise InvalidInput(f"{name} is {params.min_tokens}, but every token of {facts.name!r} is a stop token")


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
        raise InvalidInput(f"path {path!r} is not of the form tinker://<training run>/<{'|'.join(KINDS)}>/<name>")
    return parts[0], parts[1], parts[2]


def check_training_path(path: str) -> None:
    """Training starts from what save_state wrote; a sampler's snapshot holds no optimizer."""
    kind = parse_path(path)[1]
    if kind != "weights":
        what = "a sampler's snapshot" if kind == "sampler_weights" else "an export"
        raise InvalidInput(f"path {path!r} is {what}; training starts from a path that save_state returned")


def _check_forward_backward(operation: ForwardBackward, facts: ModelFacts, loss: Loss) -> None:
    loss.effective_config(operation.config)
    if loss.forward_only and operation.backward:
        raise InvalidInput(
            f"loss_fn: the loss {loss.name!r} has no gradient; ask for it by forward, and for gradients by another loss"
        )
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
    sampling_masks.check_arrays(where, datum, loss)
    loss.check_spelling(inputs, f"{where}.loss_fn_inputs")
    declared = {one.name: one for one in (*loss.inputs_of(inputs), TARGETS)}
    for name, one in declared.items():
        if name not in inputs and not (one.recorded or one.optional):
            raise InvalidInput(f"{where}.loss_fn_inputs lacks {name!r}, which the loss {loss.name!r} reads")
    for name, array in inputs.items():
        field = f"{where}.loss_fn_inputs[{name!r}]"
        if name in declared:
            _check_input(field, array, declared[name], datum, loss)
        elif not loss.carries_others:
            reads = ", ".join(sorted(declared))
            raise InvalidInput(f"{field} is not read by the loss {loss.name!r}; it reads {reads}. Leave it out.")
    _check_tokens(f"{where}.loss_fn_inputs[{TARGET_TOKENS!r}]", inputs[TARGET_TOKENS], facts)
    sampling_masks.check_mask(where, datum, facts, loss)


def _check_input(field: str, array: Array, declared: LossInput, datum: Datum, loss: Loss) -> None:
    if declared.dtype not in ("any", array.dtype.name):
        raise InvalidInput(f"{field} has dtype {array.dtype}; the loss {loss.name!r} needs {declared.dtype}")
    targets, length = datum.loss_fn_inputs[TARGET_TOKENS], len(datum.tokens_T)
    if targets.ndim not in (1, 2) or targets.shape[0] != length or targets.size == 0:
        raise InvalidInput(
            f"target_tokens of {field} has shape {targets.shape}; the model input has {length} tokens, so it must be "
            f"({length},) or ({length}, K)"
        )
    if targets.ndim not in loss.target_ranks:
        wanted = " or ".join(("", f"({length},)", f"({length}, K)")[rank] for rank in loss.target_ranks)
        raise InvalidInput(
            f"target_tokens of {field} has shape {targets.shape}; the loss {loss.name!r} works on {wanted} only"
        )
    _check_shape(field, array, declared, targets)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
        raise InvalidInput(f"{field} is {array[place]} at {list(place)}; every value must be finite")


def _check_shape(field: str, array: Array, declared: LossInput, targets: Array) -> None:
    length = targets.shape[0]
    match declared.shape:
        case "target":
            right, wanted = array.shape == targets.shape, f"that of target_tokens, {targets.shape}"
        case "token":
            right, wanted = array.shape == (length,), f"({length},), one value for each token of the model input"
        case "table":
            right = array.ndim == 2 and array.shape[0] == length and array.size > 0
            wanted = f"({length}, K), one row for each token of the model input"
        case "scalar":
            right, wanted = array.ndim <= 1 and array.size == 1, "that of one number"
    if not right:
        raise InvalidInput(f"{field} has shape {array.shape}; it must be {wanted}")


def _check_tokens(field: str, tokens: Array, facts: ModelFacts) -> None:
    wrong = (tokens < 0) | (tokens >= facts.vocabulary_size)
    if wrong.any():
        place = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        raise InvalidInput(f"{field}{list(place)} is {int(tokens[place])}; {_vocabulary(facts)}")


def _vocabulary(facts: ModelFacts) -> str:
    return f"token ids of {facts.name!r} go from 0 to {facts.vocabulary_size - 1}"


def check_optimizer(params: OptimParams, optimizer: str) -> None:
    """A model's optimizer is settled when it is created."""
    if not isinstance(params, OPTIMIZERS[optimizer]):
        [given] = [kind for kind, of_kind in OPTIMIZERS.items() if isinstance(params, of_kind)]
        raise InvalidInput(
            f"the parameters of this step are for the optimizer {given!r}, but the model was created with {optimizer!r}"
        )


def _check_params(params: OptimParams) -> None:
    match params:
        case AdamParams():
            name, ranges = "adam_params", _adam_ranges(params)
        case DimuonParams():
            name, ranges = "optimizer_params", _dimuon_ranges(params)
    for field, (right, wanted) in ranges.items():
        if not right:
            raise InvalidInput(f"{name}.{field} is {getattr(params, field)}; it must be finite and {wanted}")


def _dimuon_ranges(params: DimuonParams) -> Mapping[str, tuple[bool, str]]:
    return {
        "learning_rate": (0 <= params.learning_rate < math.inf, "0 or more"),
        "beta1": (0 <= params.beta1 < 1, "at least 0 and below 1"),
        "grad_clip_norm": (math.isfinite(params.grad_clip_norm), "a number; 0 and below mean off"),
    }


def _adam_ranges(params: AdamParams) -> Mapping[str, tuple[bool, str]]:
    return {
        "learning_rate": (0 <= params.learning_rate < math.inf, "0 or more"),
        "beta1": (0 <= params.beta1 < 1, "at least 0 and below 1"),
        "beta2": (0 <= params.beta2 < 1, "at least 0 and below 1"),
        "eps": (0 < params.eps < math.inf, "above 0: with 0, a weight whose gradients are all zero becomes 0 / 0"),
        "weight_decay": (0 <= params.weight_decay < math.inf, "0 or more"),
        "grad_clip_norm": (0 <= params.grad_clip_norm < math.inf, "0 (off) or more"),
    }


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"the checkpoint name {name!r} must be 1 to 128 letters, digits, '.', '_' or '-', the first not '.' or '-'"
        )


def check_ttl(ttl_seconds: int | None) -> None:
    low, high = TTL_SECONDS
    if ttl_seconds is not None and not low <= ttl_seconds <= high:
        raise InvalidInput(f"ttl_seconds is {ttl_seconds}; it must be from {low} (an hour) to {high} (ten years)")
