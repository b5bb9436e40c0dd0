"""Where tokens of a datum come from: runs of a sampled sequence, or of the prompt it continued."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class PromptProvenanceSpan:
    """`length` tokens that the request of sequence `sequence_id` had in its prompt, from `offset` on."""

    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        _check("PromptProvenanceSpan", self.sequence_id, self.offset, self.length)


@dataclass(frozen=True, kw_only=True)
class SampledProvenanceSpan:
    """`length` tokens that were sampled for sequence `sequence_id`, from `offset` on."""

    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        _check("SampledProvenanceSpan", self.sequence_id, self.offset, self.length)


ProvenanceSpans: TypeAlias = list[PromptProvenanceSpan | SampledProvenanceSpan]


def _check(span: str, sequence_id: str, offset: int, length: int) -> None:
    if length < 0:
        raise ValueError(f"{span}.length is {length}; it cannot be negative")
    if not sequence_id:
        raise ValueError(f"{span}.sequence_id is empty; it names a SampledSequence")
    if offset < 0:
        raise ValueError(f"{span}.offset is {offset}; it cannot be negative")
