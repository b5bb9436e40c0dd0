"""Operations on a training model. Each is acknowledged at once with the id of its future."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from weaver.compat.context import TheService
from weaver.compat.tinker import answers, convert, custom_losses, json_dialect, requests
from weaver.compat.tinker.openapi import reads, reads_protobuf
from weaver.compat.tinker.routes.bodies import json_object, read_body
from weaver.domain import ForwardBackward, Operation
from weaver.errors import InvalidInput
from weaver.service import Service, Ticket

router = APIRouter()

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

Body = TypeVar("Body", bound=requests.ModelOperation)


def _refused(service: Service, model_id: object, seq_id: object, error: InvalidInput) -> Ticket:
    """For a request that could not be decoded: it gives up its number, for the client goes on to the next."""
    if isinstance(model_id, str) and type(seq_id) is int and 0 <= seq_id < 2**63:
        return service.refuse(model_id, seq_id, error)
    raise error


def _submit(
    raw: dict[str, Any], service: Service, model: type[Body], operation: Callable[[Body], Operation]
) -> JSONResponse:
    try:
        body = requests.parse(model, raw)
        asked = operation(body)
    except InvalidInput as error:
        return JSONResponse(answers.promise(_refused(service, raw.get("model_id"), raw.get("seq_id"), error)))
    return JSONResponse(answers.promise(service.submit(body.model_id, body.seq_id, asked)))


def _without_batches(service: Service, read: Callable[[Body], ForwardBackward]) -> Callable[[Body], ForwardBackward]:
    """The SDKs that write passes as JSON may send the parts of a large one like calls, so that a loss which must
    see all of it could be given a piece."""

    def operation(body: Body) -> ForwardBackward:
        asked = read(body)
        if any(loss.batch for loss in service.losses() if loss.name == asked.loss):
            raise InvalidInput(
                f"loss_fn: the loss {asked.loss!r} must see all data of a call, which SDKs before 0.25 may send in "
                f"pieces; use a newer one, or send {PROTOBUF}"
            )
        return asked

    return operation


@router.post("/create_model", openapi_extra=reads(requests.CreateModel))
async def create_model(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.CreateModel, await json_object(request))
    ticket = service.create_model(
        body.session_id,
        body.model_seq_id,
        body.base_model,
        convert.lora_spec(body.lora_config),
        body.user_metadata,
        optimizer_kind=body.optimizer_config.type,
    )
    return JSONResponse(answers.promise(ticket))


@router.post("/get_info", openapi_extra=reads(requests.GetInfo))
async def get_info(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(requests.GetInfo, await json_object(request))
    return JSONResponse(answers.model_info(service.model_info(body.model_id)))


@router.post("/forward_backward", openapi_extra=reads_protobuf("ForwardBackwardRequest", json_dialect.ForwardBackward))
async def forward_backward(request: Request, service: TheService) -> JSONResponse:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if content_type == JSON:
        read = _without_batches(service, json_dialect.forward_backward)
        return _submit(await json_object(request), service, json_dialect.ForwardBackward, read)
    if content_type != PROTOBUF:
        known = f"{PROTOBUF}, or {JSON} as SDKs before 0.25 write it"
        raise InvalidInput(f"Content-Type is {content_type!r}; this server reads forward_backward as {known}")
    message = convert.forward_backward_message(await read_body(request))
    try:
        operation = convert.forward_backward(message)
    except InvalidInput as error:
        return JSONResponse(answers.promise(_refused(service, message.model_id, message.seq_id, error)))
    return JSONResponse(answers.promise(service.submit(message.model_id, message.seq_id, operation)))


@router.post("/forward", openapi_extra=reads(json_dialect.Forward))
async def forward(request: Request, service: TheService) -> JSONResponse:
    """Only SDKs before 0.25 ask so; later ones say `forward_only` in forward_backward."""
    read = _without_batches(service, json_dialect.forward)
    return _submit(await json_object(request), service, json_dialect.Forward, read)


@router.post("/create_custom_loss", openapi_extra=reads(custom_losses.CreateCustomLoss))
async def create_custom_loss(request: Request, service: TheService) -> JSONResponse:
    body = requests.parse(custom_losses.CreateCustomLoss, await json_object(request))
    request_id = service.create_custom_loss(body.session_id, body.custom_loss_seq_id, custom_losses.loss_graph(body))
    return JSONResponse({"request_id": request_id})


@router.post("/optim_step", openapi_extra=reads(requests.OptimStep))
async def optim_step(request: Request, service: TheService) -> JSONResponse:
    return _submit(await json_object(request), service, requests.OptimStep, convert.optim_step)


@router.post("/save_weights", openapi_extra=reads(requests.SaveWeights))
async def save_weights(request: Request, service: TheService) -> JSONResponse:
    return _submit(await json_object(request), service, requests.SaveWeights, convert.save_state)


@router.post("/save_weights_for_sampler", openapi_extra=reads(requests.SaveWeightsForSampler))
async def save_weights_for_sampler(request: Request, service: TheService) -> JSONResponse:
    return _submit(await json_object(request), service, requests.SaveWeightsForSampler, convert.save_for_sampler)


@router.post("/save_weights_external", openapi_extra=reads(requests.SaveWeightsExternal))
async def save_weights_external(request: Request, service: TheService) -> JSONResponse:
    return _submit(await json_object(request), service, requests.SaveWeightsExternal, convert.save_external)


@router.post("/load_weights", openapi_extra=reads(requests.LoadWeights, requests.LoadNewModel))
async def load_weights(request: Request, service: TheService) -> JSONResponse:
    raw = await json_object(request)
    if raw.get("session_id") is not None or raw.get("model_seq_id") is not None:
        return _load_new_model(raw, service)
    return _submit(raw, service, requests.LoadWeights, convert.load_state)


def _load_new_model(raw: dict[str, Any], service: Service) -> JSONResponse:
    body = requests.parse(requests.LoadNewModel, raw)
    ticket = service.create_model_from_state(
        body.session_id,
        body.model_seq_id,
        body.path,
        base_model=body.base_model,
        optimizer=body.optimizer,
        optimizer_kind=None if body.optimizer_config is None else body.optimizer_config.type,
        user_metadata=body.user_metadata,
    )
    return JSONResponse(answers.promise(ticket))
