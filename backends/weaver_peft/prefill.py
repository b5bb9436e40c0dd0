"""Fills the columns of rows that are about to decode: copied from a row that has them, else computed.

Columns of a prompt are computed once however many rows ask for them, and in pieces, so that a long prompt does not hold
up the rows that are decoding.

Shapes: T packed tokens of the call, n columns of one prompt; 2 is keys, then values; N layers, G key/value heads, D
head size; H hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch

from weaver_peft.base_model import BaseModel
from weaver_peft.call import Call, LoraWeights, Segment
from weaver_peft.kv_cache import KVCache
from weaver_peft.prefix_cache import PrefixCache
from weaver_peft.sequences import Row, shared_columns
from weaver_peft.slot_attention import Piece, PrefillAttention

WORTH_SHARING = 64
"""Columns. Copying fewer, or waiting for them to be computed for another row, costs more than computing them."""


@dataclass(slots=True, eq=False)
class Filling:
    """A row whose columns are not all there yet; `done` of them are, `copied` of these from another row."""

    row: Row
    done: int = 0
    copied: int = 0
    columns_2NGnD: torch.Tensor | None = None

    def gains_from(self, shared: int) -> bool:
        """Whether that many columns of another row are worth copying: enough of them, or all that are missing."""
        return shared - self.done >= min(WORTH_SHARING, self.row.needed_columns - self.done)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    filling: Filling
    piece: Piece


class Prefill:
    """The rows being filled, first come first served."""

    def __init__(self, base: BaseModel, cache: KVCache, finished: PrefixCache, computed_tokens: int = 0) -> None:
        self._base = base
        self._cache = cache
        self._finished = finished
        self._fillings: list[Filling] = []
        self.computed_tokens = computed_tokens

    @property
    def rows(self) -> list[Row]:
        return [filling.row for filling in self._fillings]

    def add(self, row: Row) -> None:
        """Begin with what sequences that are over have left of this one."""
        filling = Filling(row)
        self._fillings.append(filling)
        kept_2NGnD = self._finished.longest(row.job.columns_of, row.tokens_L[: row.copyable_columns])
        if kept_2NGnD is not None:
            self._copy(filling, kept_2NGnD, kept_2NGnD.shape[3])

    def remove(self, rows: set[Row]) -> None:
        self._fillings = [filling for filling in self._fillings if filling.row not in rows]

    def step(self, decoding: list[Row], budget: int) -> list[Row]:
        """Compute up to `budget` tokens. The rows that are now complete have joined the cache and are returned."""
        joined = self._join(decoding)
        parts = self._parts(budget)
        if parts:
            self._compute(parts)
            joined += self._join(decoding + joined)
        return joined

    def _join(self, decoding: list[Row]) -> list[Row]:
        """Copy what others have; move complete rows to the cache."""
        joined: list[Row] = []
        for filling in list(self._fillings):
            self._copy_shared(filling, decoding + joined)
            if filling.done >= filling.row.needed_columns:
                self._cache.join(filling.row, self._columns(filling))
                self._fillings.remove(filling)
                joined.append(filling.row)
                if filling.row.answers_for_prompt:
                    filling.row.job.cached_prompt_tokens = filling.copied
        return joined

    def _copy_shared(self, filling: Filling, decoding: list[Row]) -> None:
        row = filling.row
        others: list[tuple[int, Row | Filling]] = [
            *((shared_columns(row, other, self._cache.used(other)), other) for other in decoding),
            *((shared_columns(row, each.row, each.done), each) for each in self._fillings if each is not filling),
        ]
        shared, source = max(others, key=lambda pair: pair[0], default=(0, None))
        if source is None or not filling.gains_from(shared) or self._waits(filling, shared):
            return
        self._copy(
            filling, self._columns(source) if isinstance(source, Filling) else self._cache.columns(source), shared
        )

    def _copy(self, filling: Filling, source_2NGnD: torch.Tensor, shared: int) -> None:
        if shared == filling.row.needed_columns:  # a view is enough: it joins the cache, which copies it, at once
            filling.columns_2NGnD = source_2NGnD[..., :shared, :]
        else:
            self._columns(filling)[..., :shared, :] = source_2NGnD[..., :shared, :]
        filling.copied += shared - filling.done
        filling.done = shared

    def _waits(self, filling: Filling, ready: int) -> bool:
        """Whether an earlier row is being filled that will give more than the `ready` columns there are to copy."""
        earlier = self._fillings[: self._fillings.index(filling)]
        coming = max((shared_columns(filling.row, each.row, each.row.needed_columns) for each in earlier), default=0)
        return coming > ready and filling.gains_from(coming)

    def _columns(self, filling: Filling) -> torch.Tensor:
        if filling.columns_2NGnD is None:
            filling.columns_2NGnD = self._cache.shape.empty(filling.row.needed_columns)
        return filling.columns_2NGnD

    def _parts(self, budget: int) -> list[_Part]:
        """The next piece of every row that no earlier row works for, up to `budget` tokens, those of an adapter
        together and those that begin a prompt first."""
        parts = []
        for filling in self._fillings:
            if budget > 0 and not self._waits(filling, filling.done):
                stop = min(filling.done + budget, filling.row.needed_columns)
                budget -= stop - filling.done
                parts.append(_Part(filling, Piece(filling.done, stop, self._columns(filling))))
        return sorted(parts, key=lambda part: (part.piece.start > 0, part.filling.row.job.adapter_id))

    def _compute(self, parts: list[_Part]) -> None:
        pieces = [part.piece for part in parts]
        tokens_T = np.concatenate([part.filling.row.tokens_L[part.piece.start : part.piece.stop] for part in parts])
        positions_T = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        weights = [part.filling.row.job.weights for part in parts]
        segments = segments_of([piece.stop - piece.start for piece in pieces], weights)
        tokens, positions = (torch.from_numpy(each).to(self._base.device) for each in (tokens_T, positions_T))
        hidden_TH = self._base.hidden_states(tokens, positions, Call(segments, PrefillAttention(pieces)))
        self.computed_tokens += len(tokens_T)
        self._take_in(parts, hidden_TH)

    def _take_in(self, parts: list[_Part], hidden_TH: torch.Tensor) -> None:
        token = 0
        for part in parts:
            row, piece = part.filling.row, part.piece
            stop = token + piece.stop - piece.start
            if row.answers_for_prompt:
                row.job.prompt.add(self._base, row.job.weights, piece.start, hidden_TH[token:stop])
            part.filling.done = piece.stop
            token = stop


def segments_of(lengths: list[int], weights: list[LoraWeights | None]) -> tuple[Segment, ...]:
    """Segments of consecutive stretches of these lengths; neighbours with the same adapter become one."""
    segments: list[Segment] = []
    start = 0
    for length, each in zip(lengths, weights):
        if segments and segments[-1].adapter is each:
            start_of_last = segments.pop().start
            segments.append(Segment(start_of_last, start + length, each))
        else:
            segments.append(Segment(start, start + length, each))
        start += length
    return tuple(segments)
