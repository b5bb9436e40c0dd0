"""Token ids that a model reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Final

TEXT: Final = "encoded_text"


def token_ids(tokens: Iterable[Any]) -> list[int]:
    """A list of its own. Raises ValueError for anything that is no token id."""
    found = list(tokens)
    if not set(map(type, found)) <= {int}:
        if any(isinstance(token, bool) or not isinstance(token, Integral) for token in found):
            raise ValueError("model input tokens must be integers")
        found = [int(token) for token in found]
    if found and min(found) < 0:
        raise ValueError("model input tokens must be non-negative")
    return found


@dataclass(slots=True)
class ModelInputChunk:
    """A run of tokens; `type` says what they are. This service reads encoded_text."""

    type: str
    tokens: list[int]

    def __post_init__(self) -> None:
        self.tokens = token_ids(self.tokens)

    def to_dict(self) -> dict[str, object]:
        """As JSON has it. The tokens are checked again: the list is the user's to change."""
        return {"type": self.type, "tokens": token_ids(self.tokens)}


@dataclass(slots=True)
class ModelInput:
    """Chunks in order."""

    chunks: list[ModelInputChunk] = field(default_factory=list)

    @classmethod
    def from_ints(cls, tokens: Sequence[int], *, chunk_type: str = TEXT) -> "ModelInput":
        """One chunk of these tokens."""
        return cls(chunks=[ModelInputChunk(type=chunk_type, tokens=list(tokens))])

    def to_ints(self) -> list[int]:
        """All tokens. Raises ValueError where a chunk is not text."""
        if any(chunk.type != TEXT for chunk in self.chunks):
            raise ValueError(f"to_ints is for chunks of type {TEXT} only")
        return [token for chunk in self.chunks for token in chunk.tokens]

    def extend_tokens(self, tokens: Iterable[int], *, chunk_index: int = 0) -> None:
        """Put more at the end of a chunk; without any, this makes the first."""
        more = token_ids(tokens)
        if self.chunks:
            self.chunks[chunk_index].tokens.extend(more)
        else:
            self.chunks.append(ModelInputChunk(type=TEXT, tokens=more))

    def to_payload(self) -> dict[str, object]:
        """As JSON has it."""
        return {"chunks": [chunk.to_dict() for chunk in self.chunks]}
