"""Sampling sessions and samples."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import answers, convert, requests
from weaver.compat.tinker.openapi import reads
from weaver.compat.tinker.routes.bodies import json_object

router = APIRouter()


@router.post("/create_sampling_session", openapi_extra=reads(requests.CreateSamplingSession))
async def create_sampling_session(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.CreateSamplingSession, await json_object(request))
    sampling_session_id = service.create_sampling_session(
        body.session_id, body.sampling_session_seq_id, base_model=body.base_model, model_path=body.model_path
    )
    return JSONResponse({"sampling_session_id": sampling_session_id})


@router.post("/join_sampling_session", openapi_extra=reads(requests.JoinSamplingSession))
async def join_sampling_session(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.JoinSamplingSession, await json_object(request))
    return JSONResponse({"client_counter": service.join_sampling_session(body.sampling_session_id)})


@router.get("/samplers/{sampler_id:path}")
async def get_sampler(sampler_id: str, service: TheService) -> JSONResponse:
    return JSONResponse(answers.sampler_info(service.sampler_info(sampler_id)))


@router.post("/asample", openapi_extra=reads(requests.Sample))
async def asample(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.Sample, await json_object(request))
    params = body.sampling_params
    stop_token_ids, stop_strings = convert.stop_conditions(params.stop)
    ticket = service.sample(
        body.sampling_session_id,
        body.seq_id,
        prompt=convert.prompt_tokens(body.prompt),
        num_samples=body.num_samples,
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        stop_token_ids=stop_token_ids,
        stop_strings=stop_strings,
        prompt_logprobs=body.prompt_logprobs,
        topk_prompt_logprobs=body.topk_prompt_logprobs,
        prompt_logprobs_last_n=body.prompt_logprobs_last_n,
        prompt_targets=convert.prompt_targets(body.target_prompt_logprobs),
        prompt_alternatives=body.prompt_alt_tokens_k,
        topk_sample_logprobs=body.topk_sample_logprobs,
        record_stability_info=body.record_stability_info,
    )
    return JSONResponse(answers.sample_promise(ticket))
