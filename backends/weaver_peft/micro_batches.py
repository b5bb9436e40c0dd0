"""Which data go through the model together: packed one after the other, whoever they belong to.

Shapes: T packed tokens of a micro-batch, K targets per token.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from weaver.backend import Pass


@dataclass(frozen=True, slots=True)
class Item:
    """Datum `index` of pass number `number`."""

    number: int
    index: int
    model_id: str
    backward: bool
    targets: int
    tokens: int
    temperature: float
    entropy: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring items of one model with equally many targets at one temperature, all with entropies or all without:
    tokens [start, stop) of the micro-batch."""

    model_id: str
    items: tuple[Item, ...]
    start: int
    stop: int
    temperature: float
    entropy: bool


def micro_batches(passes: Sequence[Pass], budget: int, leaving_out: Collection[int] = ()) -> Iterator[tuple[Item, ...]]:
    """Every datum once, in micro-batches of at most `budget` tokens; a longer datum goes alone. Those of the passes
    numbered in `leaving_out` are not there.

    Data of one model stay together, and those that need no gradients apart from those that do.
    """
    there = [(number, one) for number, one in enumerate(passes) if number not in leaving_out]
    items = [_item(number, index, one) for number, one in there for index in range(len(one.data))]
    items.sort(key=lambda item: (item.backward, item.model_id, item.targets, item.number, item.index))
    for _, group in groupby(items, key=lambda item: item.backward):
        yield from _filled(group, budget)


def runs(items: Sequence[Item]) -> list[Run]:
    """The micro-batch cut where the adapter, the number of targets or what is computed of the logits changes."""
    found, start = [], 0
    for key, group in groupby(items, key=lambda item: (item.model_id, item.temperature, item.entropy, item.targets)):
        members = tuple(group)
        stop = start + sum(item.tokens for item in members)
        found.append(Run(key[0], members, start, stop, key[1], key[2]))
        start = stop
    return found


def pieces(run: Run, tokens: int) -> Iterator[Run]:
    """The run in pieces of whole data of at most `tokens` tokens; a longer datum is a piece by itself."""
    start = run.start
    for items in _filled(iter(run.items), tokens):
        stop = start + sum(item.tokens for item in items)
        yield replace(run, items=items, start=start, stop=stop)
        start = stop


def packed_tokens(passes: Sequence[Pass], items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and positions of the micro-batch, each (T,)."""
    tokens = [torch.from_numpy(passes[item.number].data[item.index].tokens_T) for item in items]
    return torch.cat(tokens), torch.cat([torch.arange(item.tokens) for item in items])


def _item(number: int, index: int, one: Pass) -> Item:
    datum = one.data[index]
    targets = datum.loss_fn_inputs["target_tokens"]
    columns = targets.shape[1] if targets.ndim == 2 else 1
    tokens = len(datum.tokens_T)
    return Item(number, index, one.model_id, one.backward, columns, tokens, one.temperature, one.wants_entropy)


def _filled(items: Iterator[Item], budget: int) -> Iterator[tuple[Item, ...]]:
    batch: list[Item] = []
    filled = 0
    for item in items:
        if batch and filled + item.tokens > budget:
            yield tuple(batch)
            batch, filled = [], 0
        batch.append(item)
        filled += item.tokens
    if batch:
        yield tuple(batch)
