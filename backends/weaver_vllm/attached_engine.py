"""One vLLM server that weaver is attached to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final
from uuid import uuid4

from weaver.domain import AdapterRef, SampleRequest, SampleResult
from weaver.errors import InvalidInput, ServerError
from weaver_vllm import attached_wire as wire
from weaver_vllm.attached_adapters import EngineAdapters
from weaver_vllm.attached_base import Base
from weaver_vllm.attached_calls import Calls, Lost, NotThere, Unreached
from weaver_vllm.attached_folders import Zeros, check_folder
from weaver_vllm.attached_refusals import refuse_beyond, refuse_min_tokens
from weaver_vllm.attached_server import Attached, ServerFacts, attached, check_probe, not_telling
from weaver_vllm.attached_turns import Kind, Turns

WATCH_SECONDS: Final = 5.0
"""How often a server that has something to do is asked whether its engine is well. One that ends is noticed at once."""
AGAIN_SECONDS: Final = 1.0
"""How often one that is gone is looked for."""
COMPLETIONS: Final = "/v1/completions"


class AttachedEngine:
    """Requests go to it while it `is_up`; `load` is how many samples it has. Owned by the sampler's loop."""

    def __init__(self, url: str, base: Base, slots: int | None) -> None:
        self.url, self.load, self.is_up, self.why = url, 0, False, f"{url} was not asked yet"
        self._base, self._slots = base, slots
        self._calls, self._turns, self._zeros = Calls(url), Turns(), Zeros(base.layers)
        self._found: Attached | None = None
        self._adapters: EngineAdapters | None = None
        self._fingerprint: str | None = None
        self._down = asyncio.Event()

    @property
    def facts(self) -> ServerFacts:
        """Once it was attached."""
        assert self._found is not None
        return self._found.facts

    async def attach(self, alike: ServerFacts | None) -> None:
        """Find out what the server is. Raises InvalidInput where it is none to draw from exactly, or not like the
        others, and Unreached or Lost where it does not answer."""
        found = await self._read()
        if alike is not None and found.facts != alike:
            raise InvalidInput(
                f"the vLLM server at {self.url} was started otherwise than the others: {found.facts}, not {alike}. "
                "Start all of a model alike"
            )
        if self._found is None or self._found.instance != found.instance:
            slots = found.facts.adapters
            self._adapters = EngineAdapters(min(self._slots or slots, slots), self._give, self._take)
        self._found, self.is_up, self.why = found, True, ""

    async def keep(self, alike: ServerFacts, came: Callable[[], None]) -> None:
        """Notice when it is gone, and attach again when it is back: `came` hears of that. Ends by being cancelled."""
        while True:
            if self.is_up:
                await self._watch()
                continue
            self._down.clear()
            try:
                await self.attach(alike)
                came()
            except (InvalidInput, ServerError, Unreached, Lost) as error:
                self.why = str(error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def draw(self, request: SampleRequest, alone: bool, begun: Callable[[], None]) -> SampleResult:
        """Draw for one request, in its turn. Raises Unreached or Lost where the server is gone."""
        refuse_beyond(request, self.facts, self._base.facts)
        refuse_min_tokens(request, self.facts, self._base)
        kind = Kind.ALONE if alone or wire.asks_of_prompt(request) else Kind.TOGETHER
        self.load += request.num_samples
        try:
            async with self._named(request.adapter) as name, self._turns.of(kind):
                begun()
                return await self._drawn(request, name)
        except (Unreached, Lost) as error:
            self._lose(str(error))
            raise
        finally:
            self.load -= request.num_samples

    async def forget(self, adapter_id: str) -> None:
        if self._adapters is not None:
            await self._adapters.forget(adapter_id)

    async def close(self) -> None:
        await self._calls.close()
        self._zeros.close()

    async def _read(self) -> Attached:
        try:
            info = await self._calls.get("/server_info?config_format=json")
        except NotThere as error:
            raise not_telling(self.url) from error
        found = attached(self.url, info, await self._calls.get("/v1/models"), self._base.source)
        probed = wire.Answer()
        probed.add(await self._calls.post(COMPLETIONS, wire.probe(found.model)))
        check_probe(self.url, probed)
        self._fingerprint = probed.fingerprint
        return found

    async def _watch(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS):
                await self._down.wait()
        if self.is_up and not self._calls.is_idle and not await self._calls.is_well():
            self._lose(f"{self.url} says that its engine has ended")

    def _lose(self, why: str) -> None:
        if self.is_up:
            self.is_up, self.why = False, why
            self._down.set()
            self._calls.lose()

    @asynccontextmanager
    async def _named(self, adapter: AdapterRef | None) -> AsyncIterator[str]:
        """What the server calls the weights.

        On CPUs vLLM gives rows without an adapter that of its last slot, as soon as there is one. So there they get one
        of zeros.
        """
        assert self._found is not None
        assert self._adapters is not None
        if adapter is None and self.facts.on_cpu:
            adapter = self._zeros.adapter()
        if adapter is None:
            yield self._found.model
            return
        async with self._adapters.using(adapter) as name:
            yield name

    async def _drawn(self, request: SampleRequest, name: str) -> SampleResult:
        numbers = [uuid4().hex, uuid4().hex]
        try:
            answers = await self._answers(request, name, numbers)
        except NotThere as error:
            assert self._adapters is not None
            self._adapters.clear()
            raise Lost(str(error)) from error
        except (Unreached, Lost):
            raise
        except BaseException:
            # Told and heard before the turn ends: what comes next must not meet it in the engine.
            await self._calls.tell("/abort_requests", {"request_ids": [f"cmpl-{number}-0" for number in numbers]})
            raise
        if any(answer.fingerprint != self._fingerprint for answer in answers):
            raise Lost(f"{self.url} was started again with other settings")
        return wire.result(request, answers)

    async def _answers(self, request: SampleRequest, name: str, numbers: list[str]) -> list[wire.Answer]:
        """The first sample goes ahead: it answers for the prompt, and the others begin with what it has computed."""
        seed, ends, others = wire.first_seed(request.params), self._base.facts.end_token_ids, request.num_samples - 1
        first = {**wire.body(request, name, ends, 1, seed), "request_id": numbers[0]}
        more = {**wire.body(request, name, ends, others, seed + 1), "request_id": numbers[1]}
        if wire.asks_of_prompt(request):
            first = wire.with_prompt_logprobs(first, request)
        if not others or request.params.temperature == 0:
            return [await self._whole(first)]
        if wire.asks_of_prompt(request):
            return [await self._whole(first), await self._whole(more)]
        return await self._ahead(first, more)

    async def _ahead(self, first: Mapping[str, Any], more: Mapping[str, Any]) -> list[wire.Answer]:
        answer = wire.Answer()
        others: asyncio.Task[wire.Answer] | None = None
        try:
            async with aclosing(self._calls.stream(COMPLETIONS, wire.streamed(first))) as events:
                async for told in events:
                    answer.add(told)
                    others = others or asyncio.ensure_future(self._whole(more))
            return [answer] if others is None else [answer, await others]
        finally:
            if others is not None:
                others.cancel()
                await asyncio.gather(others, return_exceptions=True)

    async def _whole(self, call: Mapping[str, Any]) -> wire.Answer:
        answer = wire.Answer()
        answer.add(await self._calls.post(COMPLETIONS, call))
        return answer

    async def _give(self, name: str, adapter: AdapterRef) -> None:
        """The engine reads it now, and not when a request first needs it: that would end it where it cannot."""
        folder = adapter.folder.absolute()
        check_folder(adapter, self.facts.max_rank, self._base.layers)
        try:
            await self._calls.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except (NotThere, InvalidInput, ServerError) as error:
            raise InvalidInput(
                f"the adapter {adapter.adapter_id} in {folder} was not loaded: {error}. The server's machine must see "
                "that folder under the same path: share weaver's data directory with it"
            ) from error

    async def _take(self, name: str) -> None:
        await self._calls.tell("/v1/unload_lora_adapter", {"lora_name": name})
