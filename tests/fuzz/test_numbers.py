"""A server that was fuzzed trains on exactly like one that never was."""

import pytest
from hypothesis import given

from tests.fuzz import passes
from tests.fuzz.checks import check
from tests.fuzz.effort import effort
from tests.fuzz.routes import asked, operations_of
from weaver.server.app import create_app

DEEP = ["/optim_step", "/asample", "/create_custom_loss", "/load_weights", "/save_weights_for_sampler", "/create_model"]
OPERATIONS = operations_of(create_app(None))


@pytest.mark.parametrize("path", DEEP)
def test_no_request_breaks_a_server_that_trains(tiny, path):
    """What reaches the tensors, of the JSON routes."""

    @effort(15)
    @given(asked(OPERATIONS["POST", f"/api/v1{path}"]))
    def holds(request):
        check(tiny, request)

    holds()


def test_refused_passes_leave_gradients_and_optimizer_as_they_were(tiny, another_tiny):
    """The other server gets the accepted requests only; after a step of each the tensors are the same, bit for bit."""

    @effort(40)
    @given(passes.passes(passes.wrong()))
    def send(request):
        tiny.ensure(), another_tiny.ensure()
        if not tiny.ask(request).refused:
            assert not another_tiny.ask(request).refused

    for world in (tiny, another_tiny):
        world.start_anew()
    send()
    step = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    found = []
    for world in (tiny, another_tiny):
        world.ensure()
        for request in (right, None):
            if request is None:
                world.made("/optim_step", model_id=world.model_id, seq_id=world.next_number(), adam_params=step)
            else:
                assert b'"error"' not in world.ask(request).settled.body
        found.append(world.tensors())
    assert found[0] == found[1]


def _right():
    message = passes.messages.ForwardBackwardRequest(loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = passes.np.array([3, 4, 5], "<i4").tobytes()
    passes.dense(datum.loss_fn_inputs["target_tokens"], passes.np.array([4, 5, 6], "<i8"))
    passes.dense(datum.loss_fn_inputs["weights"], passes.np.array([1, 0.5, -1], "<f4"))
    body = passes.Body(message, None, None, "whole", 0, b"", False)
    return passes.Asked("POST", "/api/v1/forward_backward", headers=(("content-type", passes.PROTOBUF),), body=body)


right = _right()
