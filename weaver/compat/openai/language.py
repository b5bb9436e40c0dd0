"""What a served model's tokenizer knows: text to tokens, conversations to tokens, tokens to bytes and text."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from threading import Lock
from typing import Any, Final

import numpy as np

from weaver.compat.hub.files import folder_of
from weaver.compat.openai.errors import FieldRefused
from weaver.domain import IntArray, ModelFacts
from weaver.errors import InvalidInput

TAGS: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Text that a reply is parsed by, also where a tokenizer counts it as special."""

_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOADING: Final = Lock()
_KNOWN: Final[dict[tuple[str, str], "Language"]] = {}
_TEMPLATE_FAULTS: Final = (TypeError, ValueError, KeyError, AttributeError)


class Language:
    """One tokenizer of transformers'. Methods may be called from any thread."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._added: dict[int, Any] = tokenizer.added_tokens_decoder

    def tokens(self, text: str) -> IntArray:
        """Of a plain text, with what the tokenizer puts around one, such as a token that begins it."""
        return np.array(self._tokenizer.encode(text), np.int64)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
    ) -> IntArray:
        """Of a conversation, up to where the assistant's next turn begins, by the model's own chat template. `more` is
        what the template may read beside messages and tools. Raises FieldRefused for what it does not, InvalidInput
        where there is no template."""
        self._check_read(tools, more)
        try:
            found = self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=True, return_dict=False, **more
            )
        except (import_module("jinja2").TemplateError, *_TEMPLATE_FAULTS) as error:
            raise FieldRefused(
                f"messages: the chat template of {self._name!r} does not take this conversation: {error}", "messages"
            ) from None
        return np.array(found, np.int64)

    def reads(self, word: str) -> bool:
        """Whether the chat template speaks of that word."""
        return re.search(rf"\b{re.escape(word)}\b", self.template) is not None

    @cached_property
    def template(self) -> str:
        try:
            return str(self._tokenizer.get_chat_template(tools=[{}]))
        except ValueError:
            raise InvalidInput(
                f"the model {self._name!r} has no chat template; use /v1/completions, or give its folder one"
            ) from None

    def is_special(self, token: int) -> bool:
        """Whether the token is left out of a text where `skip_special_tokens` holds."""
        added = self._added.get(token)
        return added is not None and added.special and added.content not in TAGS

    def text(self, tokens: Sequence[int]) -> str:
        """Special tokens included. A character that has not all its bytes ends as U+FFFD."""
        found: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return found

    def bytes_of(self, token: int) -> bytes:
        """What one token stands for, which may be a part of a character."""
        added = self._added.get(token)
        if added is not None:
            return str(added.content).encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a model may have more logits than its tokenizer has tokens
            return b""
        if self._is_byte_level:
            return bytes(_BYTES[character] for character in piece)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(byte[1])
        return self._in_words(piece).encode()

    def _in_words(self, piece: str) -> str:
        """A piece of a tokenizer that marks where words begin."""
        return (
            piece.replace("\u2581", " ")
            if "\u2581" in piece
            else str(self._tokenizer.convert_tokens_to_string([piece]))
        )

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = json.loads(self._tokenizer.backend_tokenizer.decoder.__getstate__())
        return any(one["type"] == "ByteLevel" for one in (decoder, *decoder.get("decoders", ())))

    def _check_read(self, tools: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> None:
        if not self.template:
            raise InvalidInput(f"the chat template of the model {self._name!r} is empty; use /v1/completions")
        if tools and not self.reads("tools"):
            raise FieldRefused(
                f"tools: the chat template of {self._name!r} has no place for them, so the model would not see them; "
                "describe them in a message, or give the model's folder a template that has",
                "tools",
            )
        taken = inspect.signature(self._tokenizer.apply_chat_template).parameters.keys() | {"messages"}
        for name in more:
            if name in taken or not self.reads(name):
                raise FieldRefused(
                    f"chat_template_kwargs.{name} is not read by the chat template of {self._name!r}; leave it out",
                    "chat_template_kwargs",
                )


def language_of(facts: ModelFacts) -> Language:
    """The tokenizer that belongs to a served model; the first time it takes a while to load. Raises InvalidInput where
    there is none."""
    key = (facts.name, facts.tokenizer_location)
    if key not in _KNOWN:
        with _LOADING:  # many may ask at once for the first time
            if key not in _KNOWN:
                _KNOWN[key] = _loaded(facts)
    return _KNOWN[key]


def _loaded(facts: ModelFacts) -> Language:
    needs = (
        f"the model {facts.name!r} has no tokenizer, and these endpoints speak text: at {facts.tokenizer_location!r}"
    )
    folder = folder_of(facts.tokenizer_location)
    if folder is None:
        raise InvalidInput(f"{needs} are no files of it")
    try:
        tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{needs} is none that can be loaded: {error}") from error
    if 2 * len(tokenizer) < facts.vocabulary_size:  # where files are missing, transformers makes up an empty one
        raise InvalidInput(f"{needs} is none that knows the model's tokens")
    return Language(facts.name, tokenizer)


def _byte_letters() -> dict[str, int]:
    """Byte-level tokenizers write a byte as a letter: as the one of its own number where that is printable in latin-1,
    and the 68 others, in order, as the letters from number 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES: Final = _byte_letters()
