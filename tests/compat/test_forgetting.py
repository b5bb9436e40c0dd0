"""What protocols remember of models, sources and requests goes when these are over."""

import asyncio
import gc

import numpy as np
import pytest

from weaver.backend import ModelSource
from weaver.compat.openai.models import Target
from weaver.compat.openai.sampling import Samplers
from weaver.compat.weaver_wire import WireContext, dispatch
from weaver.compat.weaver_wire.requests import Sample
from weaver.config import Config
from weaver.domain import Datum, SampleRequest
from weaver.service import Service

MODEL, OTHER = "some/echo", "other/echo"


@pytest.fixture
def service(tmp_path):
    sources = tuple(ModelSource(name, "echo:vocab=100,context=64") for name in (MODEL, OTHER))
    made = Service(Config(models=sources, data_dir=tmp_path, backend="echo", sampler="echo"))
    yield made
    made.close()


@pytest.fixture
def context(service):
    return WireContext(service)


def ask(context, method, path, body=None):
    return asyncio.run(dispatch(context, method, path, None, body))


def good(context, method, path, body=None):
    status, value = ask(context, method, path, body)
    assert status < 300, value
    return value


def new_model(context, longest=None):
    session_id = good(context, "POST", "/sessions", {"tags": ["t"]})["id"]
    body = {"model_seq_id": 1, "base_model": MODEL, "training_max_sequence_length": longest}
    return session_id, good(context, "POST", f"/sessions/{session_id}/models", body)["id"]


def a_pass(seq_id, weights=(1.0, 1.0)):
    inputs = {"target_tokens": {"data": [6, 7], "dtype": "int64"}, "weights": {"data": weights, "dtype": "float32"}}
    datum = {"model_input": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}, "loss_fn_inputs": inputs}
    return {"payload": {"seq_id": seq_id, "forward_backward_input": {"loss_fn": "cross_entropy", "data": [datum]}}}


def remembered(context):
    return len(context.numbering._lines), len(context.max_lengths)


def test_models_whose_sessions_have_ended_are_forgotten_with_the_next_one(context, service):
    for longest in (32, None, 32):
        session_id, model_id = new_model(context, longest)
        good(context, "POST", f"/models/{model_id}/forward-backward-passes", a_pass(seq_id=1))
        assert remembered(context) == (1, 0 if longest is None else 1)
        service.finish_session(session_id, "success")
    _, living = new_model(context, 32)
    good(context, "POST", f"/models/{living}/forward-backward-passes", a_pass(seq_id=1))
    new_model(context, 32)
    assert remembered(context) == (1, 2)
    assert good(context, "GET", f"/models/{living}")["last_seq_id"] == 1


@pytest.mark.parametrize("body", [a_pass(1), a_pass(1, weights=("x",)), {"name": "a"}])
def test_of_a_model_that_is_not_there_nothing_is_remembered(context, body):
    kind = "checkpoints" if "name" in body else "forward-backward-passes"
    status, _ = ask(context, "POST", f"/models/nobody-train-0/{kind}", body)
    assert status >= 400
    assert remembered(context) == (0, 0)


def alive(*kinds):
    gc.collect()
    return [one for one in gc.get_objects() if type(one) in kinds]


def test_an_operation_that_is_done_keeps_its_answer_and_not_its_data(context):
    before = alive(Datum, SampleRequest, Sample)
    session_id, model_id = new_model(context)
    good(context, "POST", f"/models/{model_id}/forward-backward-passes", a_pass(1))
    made = {"sampling_session_seq_id": 1, "base_model": MODEL}
    sampler = good(context, "POST", f"/sessions/{session_id}/sampling-sessions", made)["id"]
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
    body = {"prompt": prompt, "sampling_params": {"max_tokens": 2}}
    drawn = good(context, "POST", f"/sampling-sessions/{sampler}/samples", body)
    again = good(context, "GET", f"/operations/{drawn['id']}")
    assert again["response"]["result"]["usage"]["prompt_tokens"] == 2
    others = set(map(id, before))
    [kept] = [one for one in alive(Datum, SampleRequest, Sample) if id(one) not in others]
    assert type(kept) is Sample
    assert kept.prompt == {}


def test_sources_whose_sessions_have_ended_are_forgotten_with_the_next_one(service):
    samplers = Samplers(service)
    asked = {"prompt": np.array([3, 4]), "max_tokens": 2}
    samplers.sample(Target(MODEL), **asked)
    session_id = samplers._sources[Target(MODEL)].sampling_session_id.partition(":")[0]
    samplers.sample(Target(OTHER), **asked)
    assert set(samplers._sources) == {Target(MODEL), Target(OTHER)}
    service.finish_session(session_id, "expired")
    samplers.sample(Target(MODEL, None, 1.0), **asked)
    assert set(samplers._sources) == {Target(OTHER), Target(MODEL, None, 1.0)}
