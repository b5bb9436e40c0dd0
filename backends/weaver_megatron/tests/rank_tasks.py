"""What tests ask ranks to do."""

import torch
from weaver_megatron import logprobs
from weaver_megatron.architecture import check_layout, read_architecture
from weaver_megatron.gradients import sum_gradients
from weaver_megatron.rank import RankBackend
from weaver_megatron.sharding import gather_all

CHUNK_ELEMENTS = dict(logprobs.CHUNK_ELEMENTS)


def open_model(state, source, budget=None):
    """The layout's groups are made once: every model of this process uses them."""
    state["backend"] = RankBackend(source, state["layout"])
    logprobs.CHUNK_ELEMENTS["cpu"] = CHUNK_ELEMENTS["cpu"]
    if budget is not None:
        state["backend"]._budget = budget
        logprobs.CHUNK_ELEMENTS["cpu"] = 7 * 131 // state["layout"].tp  # seven tokens


def call(state, method, *arguments, **keywords):
    """Methods of the backend. What they return is needed of the first rank alone."""
    if method == "export_state":
        return state["backend"].export_state(arguments[0], optimizer=arguments[1])
    return getattr(state["backend"], method)(*arguments, **keywords)


def gradients(state, model_id):
    """The whole accumulated gradients, on rank 0."""
    model = state["backend"]._models[model_id]
    found = {
        name: model.gradients[name].clone() if name in model.gradients else torch.zeros_like(parameter)
        for name, parameter in model.parameters.items()
    }
    sum_gradients(model.ranks, model.parts, found)
    return gather_all(model.ranks, model.parts, found)


def parameters(state):
    """This rank's part of the base model, and where it is among the ranks."""
    found = {name: tensor.detach().clone() for name, tensor in state["backend"]._model.gpt.named_parameters()}
    return found, state["backend"]._ranks.tp_rank, state["backend"]._ranks.expert_part


def whole_parameters(state, model_id):
    """The tensors of an adapter that every rank has whole."""
    model = state["backend"]._models[model_id]
    return {
        name: tensor.detach().numpy().copy()
        for name, tensor in model.parameters.items()
        if model.parts[name].cut.dim is None
    }


def check(state, source, layout):
    """What the server asks before it starts ranks."""
    check_layout(read_architecture(source), layout)
