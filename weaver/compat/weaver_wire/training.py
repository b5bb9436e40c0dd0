"""Passes, optimizer steps and operations."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from weaver.compat.weaver_wire import requests
from weaver.compat.weaver_wire.acknowledging import acknowledged, told
from weaver.compat.weaver_wire.context import Answer, Body, Params, WireContext
from weaver.compat.weaver_wire.errors import Json
from weaver.compat.weaver_wire.ids import inner
from weaver.compat.weaver_wire.losses import AskedPass, asked_pass
from weaver.domain import AdamParams, ForwardBackwardResult, Operation, OptimStep, OptimStepResult
from weaver.errors import InvalidInput
from weaver.service import Ticket

POLL_SECONDS: Final = 5.0
"""How long a GET waits for an operation to settle: a client that asks sleeps up to 10 s between two questions."""


async def forward(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    payload = requests.parse(requests.Forward, body).payload
    return await _pass(context, params, payload, payload.forward_input, backward=False)


async def forward_backward(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    payload = requests.parse(requests.ForwardBackward, body).payload
    return await _pass(context, params, payload, payload.forward_backward_input, backward=True)


async def _pass(
    context: WireContext, params: Params, payload: requests.PassPayload, given: requests.Pass, *, backward: bool
) -> Answer:
    check_model(params, payload.model_id)
    losses = {loss.name: loss for loss in context.service.losses()}
    model_id, seq_id = inner(params["model_id"]), payload.seq_id
    try:
        asked = asked_pass(given.loss_fn, given.data, given.loss_fn_config, losses, backward=backward)
        _check_lengths(asked, context.max_lengths.get(model_id))
    except InvalidInput:
        if context.has(model_id):
            context.numbering.came(model_id, seq_id)
        raise
    ticket = await in_turn(context, model_id, seq_id, asked.operation)
    return await acknowledged(context, ticket, partial(pass_answer, asked.without_data))


async def in_turn(context: WireContext, model_id: str, seq_id: int | None, operation: Operation) -> Ticket:
    """Accept an operation when those of lower numbers have been."""
    context.service.model_info(model_id)  # of a model that is not there nothing is remembered
    if seq_id is None:
        return context.numbering.submit(context.service, model_id, None, operation)
    await context.numbering.turn(model_id, seq_id)
    try:
        return context.numbering.submit(context.service, model_id, seq_id, operation)
    finally:
        context.numbering.came(model_id, seq_id)


def check_model(params: Params, model_id: str | None) -> None:
    if model_id not in (None, params["model_id"]):
        raise InvalidInput(f"payload.model_id is {model_id!r}, but the path names the model {params['model_id']!r}")


def _check_lengths(asked: AskedPass, most: int | None) -> None:
    for index, datum in enumerate(asked.operation.data):
        if most is not None and len(datum.tokens_T) > most:
            raise InvalidInput(
                f"data[{index}].model_input has {len(datum.tokens_T)} tokens; the model was created for at most {most}"
            )


def pass_answer(asked: AskedPass, result: ForwardBackwardResult) -> Json:
    fields = [dict(one) for one in result.fields]
    for one, ignored in zip(fields, asked.ignored, strict=True):
        if ignored is not None:
            one["logprobs"] = np.where(ignored, np.float32(0), one["logprobs"])
    outputs: list[Json] = [{name: _tensor(array) for name, array in one.items()} for one in fields]
    for output, datum_id in zip(outputs, asked.datum_ids, strict=True):
        output |= {} if datum_id is None else {"datum_id": datum_id}
    return {"result": {"loss_fn_outputs": outputs, "metrics": _metrics(asked, result)}}


def _tensor(array: Any) -> Json:
    return {"data": array, "dtype": "float32", "shape": list(array.shape)}


def _metrics(asked: AskedPass, result: ForwardBackwardResult) -> dict[str, float]:
    """Those of the loss, and its value as `loss`, which is what callers of this wire look for."""
    metrics = dict(result.metrics)
    if "loss:sum" in metrics:
        metrics["loss:sum"] += _ignored_share(asked, result)
        metrics["loss"] = metrics["loss:sum"]
    return metrics


def _ignored_share(asked: AskedPass, result: ForwardBackwardResult) -> float:
    """What targets that do not count have taken from the value of `forward_logprob`, which nothing can weigh."""
    if asked.operation.loss != "forward_logprob":
        return 0.0
    pairs: Sequence[tuple[Any, Any]] = list(zip(asked.ignored, result.logprobs, strict=True))
    return sum(float(logprobs[ignored].sum()) for ignored, logprobs in pairs if ignored is not None)


async def optimizer_step(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    payload = requests.parse(requests.OptimizerStep, body).payload
    check_model(params, payload.model_id)
    operation = OptimStep(AdamParams(**payload.adam_params.model_dump()))
    ticket = await in_turn(context, inner(params["model_id"]), payload.seq_id, operation)
    return await acknowledged(context, ticket, step_answer)


def step_answer(result: OptimStepResult) -> Json:
    return {"metrics": dict(result.metrics)}


async def get_operation(context: WireContext, params: Params, query: Params, body: Body) -> Answer:
    seconds = None if context.hold_seconds is None else min(POLL_SECONDS, context.hold_seconds)
    _, answer = await told(replace(context, hold_seconds=seconds), params["operation_id"])
    return 200, answer


ENDPOINTS: Final = (
    ("POST", "/models/{model_id}/forward-passes", forward),
    ("POST", "/models/{model_id}/forward-backward-passes", forward_backward),
    ("POST", "/models/{model_id}/optimizer-steps", optimizer_step),
    ("GET", "/operations/{operation_id}", get_operation),
)
