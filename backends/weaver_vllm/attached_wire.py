"""Requests as vLLM's `/v1/completions` takes them, and its answers.

Shapes: n tokens of a prompt, T drawn tokens, k likeliest tokens.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from weaver.domain import (
    FloatArray,
    SampledSequence,
    SampleRequest,
    SampleResult,
    SamplingParams,
    StopReason,
    TopLogprobs,
)
from weaver.errors import ServerError
from weaver_vllm.masks import mask_of

NOTHING: Final = -9999.0
"""How vLLM writes the logprob of what cannot come."""
SEEDS: Final = 2**62
"""Seeds of samples lie below; vLLM counts them up from the first sample's, which must not pass 63 bits."""


@dataclass(slots=True, eq=False)
class Choice:
    """One sample as its pieces came."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[Mapping[str, float]] = field(default_factory=list)
    finish: str | None = None

    def add(self, told: Mapping[str, Any]) -> None:
        self.tokens += told["token_ids"] or ()
        if (logprobs := told["logprobs"]) is not None:
            self.logprobs += logprobs["token_logprobs"]
            self.tops += logprobs["top_logprobs"]
        self.finish = told["finish_reason"] or self.finish


@dataclass(slots=True, eq=False)
class Answer:
    """Of one call, which may come in pieces."""

    choices: list[Choice] = field(default_factory=list)
    prompt: list[Mapping[str, Any] | None] | None = None
    cached: int | None = None
    fingerprint: str | None = None

    def add(self, told: Mapping[str, Any]) -> None:
        for each in told["choices"]:
            while len(self.choices) <= each["index"]:
                self.choices.append(Choice())
            self.choices[each["index"]].add(each)
            self.prompt = each.get("prompt_logprobs") or self.prompt
        self.fingerprint = told.get("system_fingerprint") or self.fingerprint
        details = (told.get("usage") or {}).get("prompt_tokens_details")
        if details is not None:
            self.cached = details["cached_tokens"]


def asks_of_prompt(request: SampleRequest) -> bool:
    return request.prompt_logprobs or request.topk_prompt_logprobs > 0


def first_seed(params: SamplingParams) -> int:
    """Of the first sample; the next ones count up. Neighbouring seeds of clients' must not lead to neighbours here."""
    if params.seed is None:
        return secrets.randbelow(SEEDS)
    return int(np.random.SeedSequence(params.seed).generate_state(1, np.uint64)[0]) % SEEDS


def body(request: SampleRequest, model: str, end_tokens: Sequence[int], samples: int, seed: int) -> dict[str, Any]:
    """A call for some of the samples. Everything that vLLM would fill in by itself is said."""
    params = request.params
    stops = end_tokens if params.stop_token_ids is None else params.stop_token_ids
    greedy = params.temperature == 0
    return {
        "model": model,
        "prompt": request.prompt_n.tolist(),
        "n": samples,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_k": 0 if greedy else params.top_k,
        "top_p": 1.0 if greedy else params.top_p,
        "seed": None if greedy else seed,
        "stop": list(params.stop_strings),
        "stop_token_ids": sorted(set(stops)),
        "min_tokens": params.min_tokens,
        "ignore_eos": True,  # the model's end tokens are among those above where they should end a sample
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "watermarking": False,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "logprobs": request.topk_sample_logprobs,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def with_prompt_logprobs(call: Mapping[str, Any], request: SampleRequest) -> dict[str, Any]:
    return {**call, "prompt_logprobs": request.topk_prompt_logprobs}


def streamed(call: Mapping[str, Any]) -> dict[str, Any]:
    """In two pieces: as soon as the prompt is computed, and when the sample is done."""
    return {**call, "stream": True, "stream_interval": 1 << 30, "stream_options": {"include_usage": True}}


def event(line: str) -> Mapping[str, Any] | None:
    """What a line of a stream tells; None for those that tell nothing."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return None
    told: Mapping[str, Any] = json.loads(line.removeprefix("data: "))
    return told


def result(request: SampleRequest, answers: Sequence[Answer]) -> SampleResult:
    """Of all calls of one request; the first had the prompt's questions. Raises ServerError where vLLM did something
    else than what was asked."""
    choices = [choice for answer in answers for choice in answer.choices]
    if request.params.temperature == 0:
        choices *= request.num_samples
    if len(choices) != request.num_samples:
        raise ServerError(f"vLLM drew {len(choices)} samples, and {request.num_samples} were asked for")
    first = answers[0]
    if first.cached is None:
        raise ServerError("vLLM does not say how much of the prompt was cached")
    return SampleResult(
        sequences=tuple(_sequence(request, choice) for choice in choices),
        prompt_logprobs_n=_own_logprobs(request, first) if request.prompt_logprobs else None,
        topk_prompt_logprobs=_prompt_top(request, first) if request.topk_prompt_logprobs else None,
        cached_prompt_tokens=first.cached,
    )


def _sequence(request: SampleRequest, choice: Choice) -> SampledSequence:
    reasons, count, most = {"stop": StopReason.STOP, "length": StopReason.LENGTH}, len(choice.tokens), request.params
    whole = count == most.max_tokens if choice.finish == "length" else 0 < count <= most.max_tokens
    if choice.finish not in reasons or not whole or len(choice.logprobs) != count:
        raise ServerError(
            f"vLLM ended a sample after {count} of {most.max_tokens} tokens with the reason {choice.finish!r} and "
            f"{len(choice.logprobs)} logprobs; that is not what was asked"
        )
    tokens, logprobs = np.array(choice.tokens, np.int64), np.array(choice.logprobs, np.float32)
    k = request.topk_sample_logprobs
    rows = [{int(name.removeprefix("token_id:")): value for name, value in row.items()} for row in choice.tops]
    top = _table(rows, k) if k else None
    return SampledSequence(tokens, logprobs, reasons[choice.finish], top, mask_of(request, count))


def _table(rows: Sequence[Mapping[int, float]], k: int) -> TopLogprobs:
    """The best k of each row: vLLM adds the token that came where it is not among them."""
    table = TopLogprobs(np.zeros((len(rows), k), np.int32), np.full((len(rows), k), np.nan, np.float32))
    for place, row in enumerate(rows):
        best = sorted(row.items(), key=lambda each: -each[1])[:k]
        possible = [each for each in best if each[1] > NOTHING]
        table.token_ids_nk[place, : len(possible)] = [token for token, _ in possible]
        table.logprobs_nk[place, : len(possible)] = [logprob for _, logprob in possible]
    return table


def _own_logprobs(request: SampleRequest, answer: Answer) -> FloatArray:
    rows = _prompt_rows(request, answer)
    found = np.full(len(rows), np.nan, np.float32)
    for place, (token, row) in enumerate(zip(request.prompt_n.tolist(), rows, strict=True)):
        if row:
            found[place] = row[token]
    return found


def _prompt_top(request: SampleRequest, answer: Answer) -> TopLogprobs:
    return _table(_prompt_rows(request, answer), request.topk_prompt_logprobs)


def _prompt_rows(request: SampleRequest, answer: Answer) -> list[Mapping[int, float]]:
    """One for each token; empty where nothing was asked."""
    length, last_n = len(request.prompt_n), request.prompt_logprobs_last_n
    rows = answer.prompt or []
    if len(rows) != length:
        raise ServerError(f"vLLM scored {len(rows)} of the prompt's {length} tokens")
    start = 1 if last_n is None else length - last_n
    return [
        {int(token): each["logprob"] for token, each in (row or {}).items()} if place >= start else {}
        for place, row in enumerate(rows)
    ]


def probe(model: str) -> dict[str, Any]:
    request = SampleRequest(np.zeros(1, np.int64), 1, SamplingParams(1, 1.5, 2), topk_sample_logprobs=2)
    return body(request, model, (), 1, 1)
