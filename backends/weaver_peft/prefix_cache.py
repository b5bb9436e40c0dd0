"""Columns of sequences that are over, kept for prompts that begin like them: a conversation's next turn, a prompt asked
again.

Shapes: n columns of one sequence, L tokens; 2 is keys, then values; N layers, G key/value heads, D head size.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch

from weaver.domain import IntArray

BEGINNING = 64
"""Tokens. Sequences that share fewer are not worth finding: copying so few columns gains nothing."""

Key = tuple[str, bytes]
"""Whose columns, and the first tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One sequence: its tokens and the columns of all of them."""

    key: Key
    tokens_n: IntArray
    columns_2NGnD: torch.Tensor

    @property
    def size_bytes(self) -> int:
        return self.columns_2NGnD.nbytes


class PrefixCache:
    """Least recently used sequences leave first. Columns are found by their owner and by the tokens themselves."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._kept: OrderedDict[Kept, None] = OrderedDict()
        self._by_key: dict[Key, list[Kept]] = {}

    def add(self, owner: str, tokens_n: IntArray, columns_2NGnD: torch.Tensor) -> None:
        """Keep a copy. Sequences that it continues go; where one is kept that continues it, that one stays instead."""
        if len(tokens_n) < BEGINNING:
            return
        key = _key(owner, tokens_n)
        for other in list(self._by_key.get(key, ())):
            shared = common(other.tokens_n, tokens_n)
            if shared == len(tokens_n):
                self._kept.move_to_end(other)
                return
            if shared == len(other.tokens_n):
                self._drop(other)
        new = Kept(key, tokens_n.copy(), columns_2NGnD.clone())
        self._kept[new] = None
        self._by_key.setdefault(key, []).append(new)
        self.size_bytes += new.size_bytes

    def longest(self, owner: str, tokens_L: IntArray) -> torch.Tensor | None:
        """A view of the columns of the longest beginning of these tokens that is kept."""
        if len(tokens_L) < BEGINNING:
            return None
        found = [(common(each.tokens_n, tokens_L), each) for each in self._by_key.get(_key(owner, tokens_L), ())]
        if not found:
            return None
        shared, best = max(found, key=lambda pair: pair[0])
        self._kept.move_to_end(best)
        return best.columns_2NGnD[..., :shared, :]

    def shrink(self, size_bytes: int) -> None:
        """Drop sequences until what is left takes at most so much."""
        while self._kept and self.size_bytes > size_bytes:
            self._drop(next(iter(self._kept)))

    def forget(self, owner: str) -> None:
        """Drop what is the owner's."""
        for each in [each for each in self._kept if each.key[0] == owner]:
            self._drop(each)

    def _drop(self, one: Kept) -> None:
        del self._kept[one]
        self._by_key[one.key].remove(one)
        if not self._by_key[one.key]:
            del self._by_key[one.key]
        self.size_bytes -= one.size_bytes


def common(one_L: IntArray, other_L: IntArray) -> int:
    """How many tokens two sequences begin with alike."""
    limit = min(len(one_L), len(other_L))
    differ = one_L[:limit] != other_L[:limit]
    return int(differ.argmax()) if differ.any() else limit


def _key(owner: str, tokens_L: IntArray) -> Key:
    return owner, np.ascontiguousarray(tokens_L[:BEGINNING], np.int64).tobytes()
