"""The sampler `remembering`: the sampler `embedded`, which answers a repeated request from memory where that is exact.

A greedy or seeded request to a snapshot always has the same answer, for a snapshot never changes: evaluations that run
again cost nothing. Everything else is drawn afresh: unseeded draws, samplers that follow newer weights, scored tables.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from threading import Lock

import weaver_peft

from weaver.domain import AdapterRef, SampleRequest, SampleResult
from weaver.hookspecs import hookimpl
from weaver.sampler import SampleFuture, Sampler, SamplerFactory


class RememberingSampler:
    def __init__(self, inner: Sampler, most: int = 10_000) -> None:
        self._inner, self._most, self._lock = inner, most, Lock()
        self._results: dict[tuple[object, ...], SampleResult] = {}

    def sample(self, request: SampleRequest) -> SampleFuture:
        drawn = request.params.temperature > 0 and request.params.seed is None
        if drawn or request.inflight or request.prompt_targets:
            return self._inner.sample(request)
        asked = (getattr(request, field.name) for field in fields(request) if field.name != "prompt_n")
        key = (request.prompt_n.tobytes(), *asked)
        known = self._results.get(key)
        future = SampleFuture() if known else self._inner.sample(request)
        if known:
            future.set_result(replace(known, cached_prompt_tokens=len(request.prompt_n)))
        else:
            future.add_done_callback(lambda done: self._remember(key, done))
        return future

    def _remember(self, key: tuple[object, ...], done: SampleFuture) -> None:
        if not done.cancelled() and done.exception() is None:
            with self._lock:
                self._results[key] = done.result()
                if len(self._results) > self._most:
                    self._results.pop(next(iter(self._results)))

    def publish(self, model_id: str, version: int, adapter: AdapterRef) -> None:
        self._inner.publish(model_id, version, adapter)

    def forget(self, adapter_id: str) -> None:
        self._inner.forget(adapter_id)

    def close(self) -> None:
        self._inner.close()


@hookimpl
def weaver_samplers() -> Iterable[SamplerFactory]:
    [embedded] = weaver_peft.weaver_samplers()
    yield SamplerFactory(
        "remembering", lambda source: RememberingSampler(embedded.open(source)), "embedded, with memory"
    )
