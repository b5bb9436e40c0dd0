"""Which of several vLLM servers a request goes to."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from weaver.domain import SampleRequest
from weaver_vllm.attached_engine import AttachedEngine

BLOCK: Final = 16
"""Tokens: beginnings are compared in pieces of so many, as vLLM caches them."""
REMEMBERED: Final = 1 << 16
"""Pieces of each server."""
MUCH: Final = 8
"""A server with so many samples more than twice those of another one is much more loaded."""


class Fleet:
    """Remembers what each server has computed. Owned by the sampler's loop."""

    def __init__(self, engines: Sequence[AttachedEngine]) -> None:
        self._seen: dict[str, OrderedDict[int, None]] = {engine.url: OrderedDict() for engine in engines}
        self._used: dict[str, int] = {engine.url: 0 for engine in engines}

    def choose(self, request: SampleRequest, engines: Sequence[AttachedEngine]) -> AttachedEngine:
        """The one that knows most of the prompt's beginning, of those that are not much more loaded than another; else
        the one with least to do; else the next in turn."""
        pieces = list(_pieces(request))
        bearable = 2 * min(engine.load for engine in engines) + MUCH
        candidates = [engine for engine in engines if engine.load <= bearable]
        chosen = min(candidates, key=lambda each: (-self._known(each, pieces), each.load, self._used[each.url]))
        self._used[chosen.url] = max(self._used.values()) + 1
        self._remember(self._seen[chosen.url], pieces)
        return chosen

    def forget(self, engine: AttachedEngine) -> None:
        """It is a new one."""
        self._seen[engine.url].clear()

    def _known(self, engine: AttachedEngine, pieces: Sequence[int]) -> int:
        seen = self._seen[engine.url]
        return next((place for place, piece in enumerate(pieces) if piece not in seen), len(pieces))

    def _remember(self, seen: "OrderedDict[int, None]", pieces: Sequence[int]) -> None:
        for piece in reversed(pieces):  # a beginning is of no use without what comes before it: that goes last
            seen[piece] = None
            seen.move_to_end(piece)
        while len(seen) > REMEMBERED:
            seen.popitem(last=False)


def _pieces(request: SampleRequest) -> Iterator[int]:
    """One number for each beginning of the prompt, with the weights it is computed with."""
    so_far = hash("" if request.adapter is None else request.adapter.adapter_id)
    prompt_n = request.prompt_n
    for start in range(0, len(prompt_n) - BLOCK + 1, BLOCK):
        so_far = hash((so_far, prompt_n[start : start + BLOCK].tobytes()))
        yield so_far
