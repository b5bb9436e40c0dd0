"""A reply taken apart as its text comes: `<think>...</think>`, `<tool_call>{...}</tool_call>`, and the rest.

What is told in pieces is the same as what is told at once. Line breaks around the tags, which templates write, belong
to nobody. A call that cannot be read stays text.
"""

import json
import uuid
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

_THINK, _END_THINK, _CALL, _END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON of an object."""

    name: str
    arguments: str
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True, slots=True)
class Part:
    """What came since the last part; any of it may be empty."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, other: "Part") -> "Part":
        return Part(self.reasoning + other.reasoning, self.content + other.content, self.calls + other.calls)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class _At(Enum):
    BEGINNING = auto()
    REASONING = auto()
    CONTENT = auto()
    CALL = auto()


class ReplyParser:
    """`tools`: whether calls are looked for. `thinking`: the prompt ends with the tag that begins reasoning."""

    def __init__(self, *, tools: bool, thinking: bool = False) -> None:
        self._tools = tools
        self._at = _At.REASONING if thinking else _At.BEGINNING
        self._held = ""
        self._after_tag = thinking
        self._before_call = ""

    def feed(self, text: str) -> Part:
        """The text goes on."""
        self._held += text
        return self._read(final=False)

    def finish(self) -> Part:
        """There is no more."""
        return self._read(final=True)

    def _read(self, *, final: bool) -> Part:
        found = Part()
        while True:
            before = self._at
            match self._at:
                case _At.BEGINNING:
                    self._begin(final=final)
                case _At.REASONING:
                    found += Part(reasoning=self._until(_END_THINK, _At.CONTENT, final=final))
                case _At.CONTENT:
                    found += Part(content=self._content(final=final))
                case _At.CALL:
                    found += self._call(final=final)
            if self._at is before:
                return found

    def _begin(self, *, final: bool) -> None:
        """Reasoning comes first or not at all."""
        bare = self._held.lstrip()
        if bare.startswith(_THINK):
            self._held, self._at, self._after_tag = bare[len(_THINK) :], _At.REASONING, True
        elif final or not _THINK.startswith(bare):
            self._at = _At.CONTENT

    def _content(self, *, final: bool) -> str:
        if self._tools:
            return self._until(_CALL, _At.CALL, final=final)
        self._drop_leading_breaks()
        text, self._held = self._held, ""
        return text

    def _until(self, tag: str, then: _At, *, final: bool) -> str:
        """The text before the tag, without the line breaks that end it; where there is no tag yet, all that cannot be
        part of one or of such breaks."""
        self._drop_leading_breaks()
        place = self._held.find(tag)
        if place < 0:
            kept = 0 if final else _open_end(self._held, tag)
            text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
            return text.rstrip("\n") if final and then is _At.CONTENT else text
        text, self._held = self._held[:place], self._held[place + len(tag) :]
        self._at, self._after_tag = then, then is _At.CONTENT
        if then is _At.CALL:
            bare = text.removesuffix("\n")
            self._before_call = text[len(bare) :]
            return bare
        return text.rstrip("\n")

    def _call(self, *, final: bool) -> Part:
        """A whole call, or, where that is none, the text that it was. The end may be missing: a stop string took it."""
        place = self._held.find(_END_CALL)
        if place < 0 and not final:
            return Part()
        inside = self._held if place < 0 else self._held[:place]
        after = "" if place < 0 else self._held[place + len(_END_CALL) :]
        call = _parsed(inside)
        self._at, self._after_tag = _At.CONTENT, call is not None
        self._held = after
        if call is not None:
            return Part(calls=(call,))
        return Part(content=self._before_call + _CALL + inside + (_END_CALL if place >= 0 else ""))

    def _drop_leading_breaks(self) -> None:
        if self._after_tag:
            self._held = self._held.lstrip("\n")
            self._after_tag = not self._held


def _open_end(text: str, tag: str) -> int:
    """How many characters at the end may be line breaks before the tag, or its beginning."""
    begun = next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
    rest = text[: len(text) - begun]
    return len(text) - len(rest.rstrip("\n"))


def _no_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_json)


def _parsed(inside: str) -> ToolCall | None:
    """`{"name": ..., "arguments": {...}}`; arguments may be written as a string that holds such an object."""
    try:
        raw: Any = _DECODER.decode(inside.strip())
        name, arguments = raw["name"], raw.get("arguments", {})
        arguments = _DECODER.decode(arguments) if isinstance(arguments, str) else arguments
        written = json.dumps(arguments, ensure_ascii=False)
        f"{name}{written}".encode()  # half a surrogate pair cannot be sent
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, written)
