"""No request breaks the server: every route, with bodies and parameters right, nearly right, and hostile."""

import pytest
from hypothesis import given

from tests.fuzz.checks import check
from tests.fuzz.effort import effort
from tests.fuzz.routes import JSON, asked, bodies_of, operations_of, routes_of
from tests.fuzz.world import PROTOBUF
from weaver.compat.openai import is_ours
from weaver.server.app import create_app

APP = create_app(None)
OPERATIONS = operations_of(APP)
OWN = ("HEAD", "/openapi.json"), ("GET", "/openapi.json")


def test_the_openapi_document_tells_of_every_route():
    assert set(routes_of(APP)) - set(OWN) == set(OPERATIONS)


def test_every_route_that_takes_a_body_says_what_it_reads():
    """So that requests for it can be made. `publish` takes none."""
    without = {path for (method, path), one in OPERATIONS.items() if method in ("POST", "PUT") and not bodies_of(one)}
    assert {path.rpartition("/")[2] for path in without} == {"publish"}
    assert {kind for one in OPERATIONS.values() for kind in bodies_of(one)} == {JSON, PROTOBUF}


BY_JSON = [one for one in OPERATIONS.values() if bodies_of(one) != [PROTOBUF]]
"""What reads nothing but protobuf is in `test_protobuf`."""


@pytest.mark.parametrize("operation", BY_JSON, ids=lambda one: one.label.replace("/api/v1", ""))
def test_no_request_breaks_a_route(request, operation):
    world = request.getfixturevalue("speaking" if is_ours(operation.path) else "world")

    @effort(16)
    @given(asked(operation))
    def holds(one):
        check(world, one)

    holds()
