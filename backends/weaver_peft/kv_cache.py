"""Keys and values of the sequences being decoded.

A sequence has a slot in the pool of its size class (128, 256, 512 ... columns). Attention runs once per pool, over as
many columns as its longest sequence has, so a long sequence never widens the attention of short ones; one that outgrows
its class moves to the next.

Shapes: N layers, S slots of a pool, G key/value heads, C columns a slot can hold, D head size, n columns in use; 2 is
keys, then values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

SMALLEST_CLASS = 128


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one column of one sequence is made of."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of_model(cls, model: Any) -> "CacheShape":
        config = model.config.get_text_config()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(config.num_hidden_layers, heads, head_size, model.dtype, model.device)

    @property
    def column_bytes(self) -> int:
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize

    def empty(self, columns: int) -> torch.Tensor:
        """Columns for one sequence that is being prefilled, (2, N, G, n, D), not initialised."""
        size = (2, self.layers, self.heads, columns, self.head_size)
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def slot_bytes(self, columns: int) -> int:
        """What a sequence of that length takes in the cache."""
        return size_class(columns) * self.column_bytes


def size_class(columns: int) -> int:
    """The columns of the smallest class that holds that many."""
    return max(SMALLEST_CLASS, 1 << (columns - 1).bit_length())


class Pool:
    """Slots of one size class. Slots [0, len(keys)) are in use: where one is left, the last takes its place."""

    def __init__(self, shape: CacheShape, columns: int) -> None:
        self.columns = columns
        self.keys: list[object] = []
        self._shape = shape
        self._kv_2NSGCD = self._zeros(0)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's keys and values, each (S, G, C, D)."""
        return self._kv_2NSGCD[0, layer], self._kv_2NSGCD[1, layer]

    def slot(self, slot: int) -> torch.Tensor:
        """One slot of all layers, (2, N, G, C, D)."""
        return self._kv_2NSGCD[:, :, slot]

    def add(self, key: object, columns_2NGnD: torch.Tensor) -> int:
        """Give the sequence a slot that begins with these columns."""
        slot, used = len(self.keys), columns_2NGnD.shape[3]
        if slot == self._kv_2NSGCD.shape[2]:
            self._grow()
        self.keys.append(key)
        self.slot(slot)[..., :used, :] = columns_2NGnD
        # Attention masks the unused columns by adding -inf, which does not mask what an earlier sequence left
        # there if that is not a number.
        self.slot(slot)[..., used:, :] = 0
        return slot

    def remove(self, slot: int) -> object | None:
        """Free the slot; the key of the sequence that now has it, if one moved there."""
        last = len(self.keys) - 1
        moved = None
        if slot != last:
            self.slot(slot).copy_(self.slot(last))
            moved = self.keys[slot] = self.keys[last]
        self.keys.pop()
        if not self.keys:
            self._kv_2NSGCD = self._zeros(0)
        return moved

    def _grow(self) -> None:
        old = self._kv_2NSGCD
        self._kv_2NSGCD = self._zeros(max(1, 2 * old.shape[2]))
        self._kv_2NSGCD[:, :, : old.shape[2]] = old

    def _zeros(self, slots: int) -> torch.Tensor:
        shape = self._shape
        size = (2, shape.layers, slots, shape.heads, self.columns, shape.head_size)
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)


@dataclass(slots=True)
class _Place:
    pool: Pool
    slot: int
    used: int


class KVCache:
    """The cached columns of every decoding sequence; a sequence is known by its key, any object."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._pools: dict[int, Pool] = {}
        self._places: dict[object, _Place] = {}

    def pools(self) -> Iterator[Pool]:
        """The pools in use, smallest class first."""
        return (self._pools[columns] for columns in sorted(self._pools) if self._pools[columns].keys)

    def used(self, key: object) -> int:
        """How many columns the sequence has."""
        return self._places[key].used

    def columns(self, key: object) -> torch.Tensor:
        """A view of the sequence's columns, (2, N, G, n, D), good until the cache changes."""
        place = self._places[key]
        return place.pool.slot(place.slot)[..., : place.used, :]

    def join(self, key: object, columns_2NGnD: torch.Tensor) -> None:
        """Add a sequence that begins with these columns."""
        used = columns_2NGnD.shape[3]
        size = size_class(used + 1)
        pool = self._pools.setdefault(size, Pool(self.shape, size))
        self._places[key] = _Place(pool, pool.add(key, columns_2NGnD), used)

    def leave(self, key: object) -> None:
        place = self._places.pop(key)
        moved = place.pool.remove(place.slot)
        if moved is not None:
            self._places[moved].slot = place.slot

    def extend(self) -> None:
        """Every sequence gets one more column, yet to be written."""
        full = [key for key, place in self._places.items() if place.used == place.pool.columns]
        for key in full:
            columns = self.columns(key).clone()
            self.leave(key)
            self.join(key, columns)
        for place in self._places.values():
            place.used += 1
