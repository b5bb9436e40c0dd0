"""What a model reads: pieces of text, images and sound in order."""

import base64
from collections.abc import Sequence
from typing import Literal, TypeAlias

from pydantic import field_serializer, field_validator

from weaver.compat.tinker.types.base import Strict


class EncodedTextChunk(Strict):
    """Token ids."""

    tokens: Sequence[int]
    type: Literal["encoded_text"] = "encoded_text"

    @property
    def length(self) -> int:
        return len(self.tokens)


class ImageAssetPointerChunk(Strict):
    """An image the server can find by itself; for sampling only."""

    format: Literal["png", "jpeg"]
    location: str
    expected_tokens: int | None = None
    type: Literal["image_asset_pointer"] = "image_asset_pointer"

    @property
    def length(self) -> int:
        """The tokens it stands for. Raises ValueError while `expected_tokens` is not set."""
        return _expected_tokens("ImageAssetPointerChunk", self.expected_tokens)


class ImageChunk(Strict):
    """An image's bytes, base64 in JSON. `expected_tokens` is what the sender counts on; the model decides."""

    data: bytes
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None
    type: Literal["image"] = "image"

    @field_validator("data", mode="before")
    @classmethod
    def validate_data(cls, value: bytes | str) -> bytes:
        return _from_base64(value)

    @field_serializer("data")
    def serialize_data(self, value: bytes) -> str:
        return base64.b64encode(value).decode()

    @property
    def length(self) -> int:
        """The tokens it stands for. Raises ValueError while `expected_tokens` is not set."""
        return _expected_tokens("ImageChunk", self.expected_tokens)


class DmelChunk(Strict):
    """Sound: a tensor in a container of its own, base64 in JSON."""

    dmel: bytes
    type: Literal["dmel"] = "dmel"

    @field_validator("dmel", mode="before")
    @classmethod
    def validate_dmel(cls, value: bytes | str) -> bytes:
        return _from_base64(value)

    @field_serializer("dmel")
    def serialize_dmel(self, value: bytes) -> str:
        return base64.b64encode(value).decode()

    @property
    def length(self) -> int:
        """The tensor's first extent. Raises ValueError for bytes that are no such container."""
        return first_extent(self.dmel)


ModelInputChunk: TypeAlias = EncodedTextChunk | ImageAssetPointerChunk | ImageChunk | DmelChunk


class ModelInput(Strict):
    """Chunks in order. Never changes: `append` and `append_int` give a longer one."""

    chunks: list[ModelInputChunk]

    @classmethod
    def from_ints(cls, tokens: list[int]) -> "ModelInput":
        """One chunk of text."""
        return cls(chunks=[EncodedTextChunk(tokens=tokens)])

    def to_ints(self) -> list[int]:
        """The token ids of all chunks. Raises ValueError when one of them is not text."""
        tokens: list[int] = []
        for position, chunk in enumerate(self.chunks):
            if not isinstance(chunk, EncodedTextChunk):
                raise ValueError(f"chunks[{position}] is a {type(chunk).__name__}, which has no token ids")
            tokens.extend(chunk.tokens)
        return tokens

    @property
    def length(self) -> int:
        """The tokens of all chunks together."""
        return sum(chunk.length for chunk in self.chunks)

    @classmethod
    def empty(cls) -> "ModelInput":
        """No chunks at all."""
        return cls(chunks=[])

    def append(self, chunk: ModelInputChunk) -> "ModelInput":
        """This and one more chunk."""
        return ModelInput(chunks=[*self.chunks, chunk])

    def append_int(self, token: int) -> "ModelInput":
        """This and a chunk of one token."""
        return self.append(EncodedTextChunk(tokens=[token]))


_CONSTANT_MARK = 254
_DTYPES = 8


def first_extent(container: bytes) -> int:
    """The first extent of a serialized tensor: perhaps a mark, a dtype byte, then varints: their number and they."""
    start = 1 if container[:1] == bytes([_CONSTANT_MARK]) else 0
    if len(container) <= start:
        raise ValueError("dmel ends before its dtype")
    if container[start] >= _DTYPES:
        raise ValueError(f"dmel has the dtype byte {container[start]}; 0 to {_DTYPES - 1} are known")
    count, start = _varint(container, start + 1)
    extents: list[int] = []
    for _ in range(count):
        extent, start = _varint(container, start)
        extents.append(extent)
    if not extents:
        raise ValueError("dmel is a single number; its first extent is the number of tokens")
    return extents[0]


def _varint(container: bytes, start: int) -> tuple[int, int]:
    """The number at `start` (seven bits a byte, lowest first) and where the next one begins."""
    number = 0
    for place in range(10):
        if start + place >= len(container):
            raise ValueError("dmel ends within the extents of its tensor")
        byte = container[start + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number, start + place + 1
    raise ValueError("dmel has an extent of more than ten bytes")


def _from_base64(value: bytes | str) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else value


def _expected_tokens(chunk: str, expected_tokens: int | None) -> int:
    if expected_tokens is None:
        raise ValueError(f"the length of an {chunk} is its expected_tokens, which is not set")
    return expected_tokens
