"""The fuzz finds what it is for: each fault here breaks one promise of a server that keeps the others."""

import threading

import pytest
from hypothesis import given

from tests.fuzz import passes
from tests.fuzz.checks import Broken, check
from tests.fuzz.effort import effort
from tests.fuzz.routes import asked, operations_of
from weaver.errors import InvalidInput, UserError
from weaver.server.app import create_app
from weaver.service import Service

OPERATIONS = operations_of(create_app(None))


def fuzz(world, path):
    @effort(60, once=True)
    @given(asked(OPERATIONS["POST", f"/api/v1{path}"]))
    def holds(request):
        check(world, request)

    holds()


class FailsOnAField(Service):
    def create_session(self, **told):
        return super().create_session(**told) if not told["tags"] else {}["tags"]


class LeavesARow(Service):
    """A refused sampling session is in the database all the same."""

    def create_sampling_session(self, session_id, number, **told):
        try:
            return super().create_sampling_session(session_id, number, **told)
        except UserError:
            self._store.add_clone(f"{session_id} {number}")
            raise


class LeavesGradients(Service):
    """A refused pass has changed the weights."""

    def refuse(self, model_id, seq_id, error):
        engine = next(iter(self._base_models._engines.values()))
        engine._executor._opened._models[model_id].gradient_V += 1
        return super().refuse(model_id, seq_id, error)


class TakesTwoNumbers(Service):
    def refuse(self, model_id, seq_id, error):
        engine = next(iter(self._base_models._engines.values()))
        engine.refuse(model_id, seq_id + 1, error)
        return super().refuse(model_id, seq_id, error)


class SaysNothing(Service):
    def join_sampling_session(self, sampling_session_id):
        raise InvalidInput("  ")


class BlamesItself(Service):
    """A user's mistake is told as the server's, after it was accepted."""

    def future(self, request_id):
        future = super().future(request_id)
        if future.done() and future.exception() is not None:
            failed = type(future)()
            failed.set_exception(RuntimeError(str(future.exception())))
            return failed
        return future


class Hangs(Service):
    """Answers some requests when the test is over."""

    over = threading.Event()

    def create_session(self, **told):
        if told["tags"]:
            self.over.wait(30)
        return super().create_session(**told)


@pytest.mark.parametrize(
    ("fault", "path", "told"),
    [
        (FailsOnAField, "/create_session", "made the server fail"),
        (LeavesARow, "/create_sampling_session", r"(?s)refused request changed something.*clones"),
        (TakesTwoNumbers, "/optim_step", "refused request"),
        (SaysNothing, "/join_sampling_session", "says nothing"),
        (BlamesItself, "/save_weights", "as if by the server"),
        (Hangs, "/create_session", "no answer in time"),
    ],
)
def test_the_fuzz_catches(start_world, fault, path, told):
    Hangs.over.clear()
    world = start_world(fault, deadline=1.0 if fault is Hangs else 10.0)
    with pytest.raises(Broken, match=told):
        fuzz(world, path)
    Hangs.over.set()


def test_the_fuzz_catches_a_refused_pass_that_moves_the_weights(start_world):
    world = start_world(LeavesGradients)

    @effort(60, once=True)
    @given(passes.passes(passes.wrong()))
    def holds(request):
        check(world, request)

    with pytest.raises(Broken, match=r"(?s)changed something.*backends"):
        holds()
