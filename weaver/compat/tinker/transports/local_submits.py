"""The endpoints that are answered by a promise: operations, models, losses."""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from weaver.compat.tinker import convert, custom_losses, requests
from weaver.compat.tinker.transports.contract import Call
from weaver.domain import Operation
from weaver.errors import InvalidInput
from weaver.service import Service

Body = TypeVar("Body", bound=requests.ModelOperation)
Submit = Callable[[Service, Call], str]
"""Returns the id of the request."""


def _operation(model: type[Body], operation: Callable[[Body], Operation]) -> Submit:
    """One that cannot be read gives up its number, like one that the service refuses."""

    def submit(service: Service, call: Call) -> str:
        raw = dict(call.body or {})
        try:
            body = requests.parse(model, raw)
            asked = operation(body)
        except InvalidInput as error:
            return service.refuse(raw["model_id"], raw["seq_id"], error).request_id
        return service.submit(body.model_id, body.seq_id, asked).request_id

    return submit


def create_model(service: Service, call: Call) -> str:
    body = requests.parse(requests.CreateModel, dict(call.body or {}))
    ticket = service.create_model(
        body.session_id,
        body.model_seq_id,
        body.base_model,
        convert.lora_spec(body.lora_config),
        body.user_metadata,
        optimizer_kind=body.optimizer_config.type,
    )
    return ticket.request_id


_load_state: Final = _operation(requests.LoadWeights, convert.load_state)


def load_weights(service: Service, call: Call) -> str:
    raw = dict(call.body or {})
    if "session_id" not in raw:
        return _load_state(service, call)
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
    return ticket.request_id


def create_custom_loss(service: Service, call: Call) -> str:
    body = requests.parse(custom_losses.CreateCustomLoss, dict(call.body or {}))
    return service.create_custom_loss(body.session_id, body.custom_loss_seq_id, custom_losses.loss_graph(body))


SUBMITS: Final[Mapping[str, Submit]] = {
    "/create_model": create_model,
    "/load_weights": load_weights,
    "/create_custom_loss": create_custom_loss,
    "/optim_step": _operation(requests.OptimStep, convert.optim_step),
    "/save_weights": _operation(requests.SaveWeights, convert.save_state),
    "/save_weights_for_sampler": _operation(requests.SaveWeightsForSampler, convert.save_for_sampler),
    "/save_weights_external": _operation(requests.SaveWeightsExternal, convert.save_external),
}


def is_slow(call: Call) -> bool:
    """What may have to import the framework that reads a model's configuration."""
    return call.endpoint in ("/create_model", "/create_custom_loss") or "session_id" in dict(call.body or {})
