"""How the operations of one model reach its service: each in its turn, none held up by whoever waits for it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from weaver.compat.tinker import types
from weaver.compat.tinker.lib import background
from weaver.compat.tinker.lib.client_side_loss import LossFunction, Surrogate, surrogate
from weaver.compat.tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture
from weaver.compat.tinker.lib.session import Session
from weaver.compat.tinker.lib.turns import Turns
from weaver.compat.tinker.transports.contract import Call, Json, Pass, Promise

T = TypeVar("T")


class Operations:
    """One model's. Methods are called on the caller's thread; what they return is still to come."""

    def __init__(self, session: Session, model_id: str) -> None:
        self._session, self._model_id = session, model_id
        self._turns = Turns()

    def run_pass(self, asked: Pass) -> APIFuture[types.ForwardBackwardOutput]:
        """Raises ValueError without data; what else is wrong is told by the future."""
        if not asked.data:
            raise ValueError("No data provided")
        try:
            encoded = self._session.transport.encode(asked)
        except Exception as error:  # noqa: BLE001 -- like every refusal, this one belongs to the future
            return _failed(error)
        return self._session.run(self._pass(encoded, self._turns.reserve().start))

    def run_custom(
        self, data: list[types.Datum], function: LossFunction, asked: Pass
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`asked` computes the logprobs that the function reads; its gradient is what a second pass adds."""
        if not data:
            raise ValueError("No data provided")
        encoded = self._session.transport.encode(asked)
        forward, backward = self._turns.reserve(2)
        future = self._session.run(self._custom(data, function, encoded, forward, backward)).future()
        future.add_done_callback(self._poison_when_cancelled)
        return AwaitableConcurrentFuture(future)

    def run(self, endpoint: str, body: Mapping[str, Any], parse: Callable[[Json], T]) -> APIFuture[T]:
        """An operation that is a JSON request: fields that are None are left out."""
        return self._session.run(self.in_turn(endpoint, body, parse, self.reserve()))

    def reserve(self) -> int:
        """The next number: whoever takes one uses it."""
        return self._turns.reserve().start

    async def in_turn(self, endpoint: str, body: Mapping[str, Any], parse: Callable[[Json], T], number: int) -> T:
        given = {name: value for name, value in body.items() if value is not None}
        call = Call("POST", endpoint, body={"model_id": self._model_id, "seq_id": number, **given})
        promise = await self._submitted(number, lambda: self._session.transport.submit(call))
        return parse(await self._session.transport.result(promise))

    async def _pass(self, encoded: Any, number: int) -> types.ForwardBackwardOutput:
        transport = self._session.transport
        submit = lambda: transport.submit_pass(self._model_id, number, encoded)  # noqa: E731
        return await transport.pass_result(await self._submitted(number, submit))

    async def _submitted(self, number: int, submit: Callable[[], Awaitable[Promise]]) -> Promise:
        """Whoever stops waiting does not take a request out of the order in which later ones count on it."""

        async def submitted() -> Promise:
            async with self._turns.take(number):
                return await submit()

        return await asyncio.shield(background.task(submitted()))

    async def _custom(
        self, data: list[types.Datum], function: LossFunction, encoded: Any, forward: int, backward: int
    ) -> types.ForwardBackwardOutput:
        try:
            logprobs = await self._pass(encoded, forward)
            loss: Surrogate = await background.in_thread(lambda: surrogate(data, function, logprobs))
            second = Pass(loss.data, "cross_entropy", {}, forward_only=False)
            result = await self._pass(self._session.transport.encode(second), backward)
        except BaseException as error:
            self._turns.poison(error)
            background.task(self._session.transport.give_up(self._model_id, [backward]))
            raise
        return loss.finished(result)

    def _poison_when_cancelled(self, future: "Future[types.ForwardBackwardOutput]") -> None:
        if future.cancelled():
            background.loop().call_soon_threadsafe(self._turns.poison, CancelledError())


def _failed(error: Exception) -> APIFuture[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return AwaitableConcurrentFuture(future)
