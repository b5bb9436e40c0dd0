"""Sampling sessions, samples, and logprobs of prompts."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.acknowledging import acknowledged
from weaver.compat.weaver_wire.checkpoints import named
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import Json, NotOffered
from weaver.compat.weaver_wire.ids import inner, outer, parse_path, service_path, weaver_path
from weaver.compat.weaver_wire.names import served_name
from weaver.compat.weaver_wire.tensors import number, prompt_ids
from weaver.compat.weaver_wire.texts import decode, tokenizer_path
from weaver.domain import SampledSequence, SampleResult, TopLogprobs
from weaver.engine.executor import SAMPLER
from weaver.errors import InvalidInput, UnknownName
from weaver.service import SamplerInfo, Ticket
from weaver.service.door import parse_path as parse_service_path

UNFILTERED: Final = "behavior/unfiltered/v1"


async def create_sampling_session(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked = requests.parse(requests.CreateSamplingSession, body)
    path, base_model = asked.model_path, asked.base_model
    if path is not None:
        _check_owner(asked)
        path = _sampled(context, path)
    sampling_session_id = context.service.create_sampling_session(
        params["session_id"],
        asked.sampling_session_seq_id,
        base_model=None if base_model is None else served_name(context.service, base_model)[0],
        model_path=path,
    )
    return 201, _session_answer(context, context.service.sampler_info(sampling_session_id))


def _check_owner(asked: requests.CreateSamplingSession) -> None:
    path = asked.model_path or ""
    if asked.model_id is None or not path.startswith("weaver://"):
        return
    if parse_path(path)[0] != inner(asked.model_id):
        raise InvalidInput(f"model_id is {asked.model_id!r}, but model_path {path!r} is of another model")


def _sampled(context: WireContext, path: str) -> str:
    """The snapshot of that path; where there is none, what is there, for the service to say why it is not sampled."""
    wanted = service_path(path, SAMPLER)
    try:
        return context.service.checkpoint_info(wanted).path
    except UnknownName:
        return named(context.service, path).path


def _session_answer(context: WireContext, info: SamplerInfo) -> Json:
    location = context.service.base_model(info.base_model).tokenizer_location
    model_path = None if info.model_path is None else _outer_path(info.model_path)
    return {
        "id": outer(info.sampling_session_id),
        "base_model": info.base_model,
        "model_path": model_path,
        "model_id": None if info.model_path is None else outer(parse_service_path(info.model_path)[0]),
        "status": "running",
        "tokenizer_path": tokenizer_path(location, info.base_model, is_local=context.is_local),
    }


def _outer_path(path: str) -> str:
    model_id, _, name = parse_service_path(path)
    return weaver_path(model_id, name)


async def get_sampling_session(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    return 200, _session_answer(context, context.service.sampler_info(inner(params["sampling_session_id"])))


async def sample(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, session_id = requests.parse(requests.Sample, body), inner(params["sampling_session_id"])
    info = context.service.sampler_info(session_id)
    given = asked.sampling_params
    _check_behaviour(asked)
    ticket = context.service.sample(
        session_id,
        next(context.sample_numbers),
        prompt=prompt_ids(asked.prompt, "prompt"),
        num_samples=asked.num_samples,
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        seed=_seed(given),
        stop_token_ids=_stop_token_ids(context, info, given.stop_token_ids),
        stop_strings=tuple(given.stop),
        prompt_logprobs=asked.prompt_logprobs,
        topk_prompt_logprobs=asked.topk_prompt_logprobs,
        sampling_mask=asked.return_sampling_mask,
        topk_sample_logprobs=0 if asked.score_centering is None else asked.score_centering.head_size,
    )
    length = len(prompt_ids(asked.prompt, "prompt"))
    encode = partial(_sample_answer, context, info, asked.model_copy(update={"prompt": {}}), length)
    return await acknowledged(context, Ticket(ticket.request_id, ""), encode)


def _check_behaviour(asked: requests.Sample) -> None:
    """What is asked about the distribution that tokens are drawn from must be about the model's own."""
    given = asked.sampling_params
    untouched = (given.temperature, given.top_p, given.top_k) == (1.0, 1.0, -1)
    if asked.return_old_logprob and not untouched:
        raise NotOffered(
            "return_old_logprob: this server tells the logprobs under the distribution tokens were drawn from, which "
            "are the model's own at temperature 1, top_p 1 and top_k -1 only"
        )
    if asked.score_centering is None:
        return
    if asked.score_centering.transport != "inline":
        raise NotOffered("score_centering.transport is 'ref': this server answers inline only")
    beside = asked.return_old_logprob or asked.return_sampling_mask
    if not untouched or asked.prompt_logprobs or asked.topk_prompt_logprobs or beside:
        raise InvalidInput(
            "score_centering needs temperature 1, top_p 1, top_k -1, and none of prompt_logprobs, return_old_logprob "
            "and return_sampling_mask"
        )


def _seed(given: requests.SamplingParams) -> int | None:
    if None not in (given.seed, given.sampling_seed) and given.seed != given.sampling_seed:
        raise InvalidInput(f"sampling_params: seed is {given.seed} and sampling_seed {given.sampling_seed}; give one")
    return given.sampling_seed if given.seed is None else given.seed


def _stop_token_ids(context: WireContext, info: SamplerInfo, given: Sequence[int]) -> tuple[int, ...] | None:
    """Those that were given, and the model's own end tokens beside them: on this wire nothing switches these off."""
    if not given:
        return None
    return (*context.service.base_model(info.base_model).end_token_ids, *given)


def _sample_answer(
    context: WireContext, info: SamplerInfo, asked: requests.Sample, prompt_length: int, result: SampleResult
) -> Json:
    version = {"weight_version": info.base_model if info.model_path is None else _outer_path(info.model_path)}
    location = context.service.base_model(info.base_model).tokenizer_location
    drawn = sum(len(sequence.tokens) for sequence in result.sequences)
    answer: Json = {
        "sequences": [_sequence(sequence, asked, location) | version for sequence in result.sequences],
        "usage": {
            "prompt_tokens": prompt_length,
            "completion_tokens": drawn,
            "total_tokens": prompt_length + drawn,
            "cached_prompt_tokens": result.cached_prompt_tokens,
        },
        **version,
    }
    if result.prompt_logprobs_n is not None:
        answer["prompt_logprobs"] = _logprobs(result.prompt_logprobs_n)
    if result.topk_prompt_logprobs is not None:
        answer["topk_prompt_logprobs"] = _rows(result.topk_prompt_logprobs)
    return {"result": answer}


def _sequence(sequence: SampledSequence, asked: requests.Sample, location: str) -> Json:
    tokens, logprobs = sequence.tokens.tolist(), sequence.logprobs.tolist()
    answer: Json = {
        "tokens": tokens,
        "text": decode(location, tokens),
        "logprobs": logprobs,
        "stop_reason": sequence.stop_reason.value,
    }
    answer |= {"old_logprobs": logprobs} if asked.return_old_logprob else {}
    answer |= {"sampling_masks": _masks(sequence, asked)} if asked.return_sampling_mask else {}
    if asked.score_centering is None or sequence.top_logprobs is None:
        return answer
    head = sequence.top_logprobs
    return answer | {
        "sampler_logprobs": np.minimum(sequence.logprobs, 0).tolist(),
        "sampler_topk_ids": head.token_ids_nk.tolist(),
        "sampler_topk_logprobs": np.minimum(head.logprobs_nk, 0).tolist(),
        "sampler_topk_mask": np.ones(head.token_ids_nk.shape, np.int64).tolist(),
        "sampler_distribution": {"schema": UNFILTERED},
    }


def _masks(sequence: SampledSequence, asked: requests.Sample) -> list[list[int]]:
    """A row for each token. On this wire a greedy one was drawn among itself alone: trained so, it has no gradient."""
    if asked.sampling_params.temperature == 0:
        return [[token] for token in sequence.tokens.tolist()]
    if sequence.sampling_mask is None:
        raise NotOffered("return_sampling_mask: this server's sampler does not tell what tokens were drawn among")
    return sequence.sampling_mask.lists()


def _logprobs(values: Any) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _rows(table: TopLogprobs) -> list[list[tuple[int, float]] | None]:
    rows = zip(table.token_ids_nk.tolist(), table.logprobs_nk.tolist(), strict=True)
    return [[(token, value) for token, value in zip(*row, strict=True) if not np.isnan(value)] or None for row in rows]


async def logprobs(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    asked, session_id = requests.parse(requests.Logprobs, body), inner(params["sampling_session_id"])
    ticket = context.service.sample(
        session_id,
        next(context.sample_numbers),
        prompt=prompt_ids(asked.prompt, "prompt"),
        max_tokens=1,
        prompt_logprobs=True,
        prompt_temperature=_temperature(asked.loss_fn_config),
    )
    return await acknowledged(context, Ticket(ticket.request_id, ""), _logprobs_answer)


def _temperature(config: Body) -> float:
    """The one thing that can be configured."""
    if unread := set(config) - {"temperature"}:
        raise InvalidInput(
            f"loss_fn_config has {', '.join(sorted(unread))}; logprobs are configured by temperature only"
        )
    return number(config.get("temperature", 1.0), "loss_fn_config['temperature']")


def _logprobs_answer(result: SampleResult) -> Json:
    assert result.prompt_logprobs_n is not None
    return {"result": {"prompt_logprobs": _logprobs(result.prompt_logprobs_n)}}


ENDPOINTS: Final = (
    ("POST", "/sessions/{session_id}/sampling-sessions", create_sampling_session),
    ("GET", "/sampling-sessions/{sampling_session_id}", get_sampling_session),
    ("POST", "/sampling-sessions/{sampling_session_id}/samples", sample),
    ("POST", "/sampling-sessions/{sampling_session_id}/logprobs", logprobs),
)
