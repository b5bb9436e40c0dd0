"""No pass breaks the server: right ones, ones with a field or a byte wrong, bombs, and tensors too large to be true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import passes
from tests.fuzz.checks import check
from tests.fuzz.effort import effort


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_no_pass_breaks_a_server_without_torch(world, kind):
    @effort(60)
    @given(passes.passes(passes.wrong() if kind == "wrong" else passes.right(losses=("cross_entropy",))))
    def holds(request):
        check(world, request)

    holds()


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_no_pass_breaks_a_server_that_trains(tiny, kind):
    @effort(60)
    @given(passes.passes(passes.wrong() if kind == "wrong" else passes.right()))
    def holds(request):
        check(tiny, request)

    holds()


@pytest.mark.parametrize(
    "message", passes.OVERSIZED, ids=lambda one: str(list(one.data[0].loss_fn_inputs["weights"].shape))
)
def test_a_few_bytes_that_declare_a_large_tensor_are_refused(world, message):
    @effort(1)
    @given(
        st.just(
            passes.Asked(
                "POST",
                "/api/v1/forward_backward",
                headers=(("content-type", passes.PROTOBUF),),
                body=passes.Body(message, None, None, "whole", 0, b"", False),
            )
        )
    )
    def holds(request):
        assert check(world, request).refused

    holds()
