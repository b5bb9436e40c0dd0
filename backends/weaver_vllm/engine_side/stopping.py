"""Says when a sequence is over for a stop string: with the token that completes it."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from transformers import AutoTokenizer

from .errors import Refused

UNTRUSTED: Final = 4
"""A window of tokens may begin inside a character, which then decodes to at most 3 replacement characters, and may lose
a leading space: so many characters at its beginning are not trusted to be the text's own."""
FIRST_WINDOW: Final = 16
UNFINISHED: Final = "\ufffd"


class Detokenizer:
    """The model's tokenizer, loaded when a stop string first needs it."""

    def __init__(self, name: str, location: str, vocabulary_size: int) -> None:
        self._name, self._location, self._vocabulary_size = name, location, vocabulary_size

    def text(self, tokens: Sequence[int]) -> str:
        """The raw text, special tokens included. Raises Refused where the model has no tokenizer."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _tokenizer(self) -> Any:
        needs = f"stop strings need a tokenizer, and {self._name!r} has none"
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._location)
        except (OSError, ValueError, KeyError) as error:
            raise Refused(f"{needs} that can be loaded from {self._location!r}: {error}") from error
        if 2 * len(tokenizer) < self._vocabulary_size:  # where files are missing, transformers makes up an empty one
            raise Refused(f"{needs} that knows its tokens in {self._location!r}")
        return tokenizer


class StopStrings:
    """Of one request."""

    def __init__(self, strings: Sequence[str], min_tokens: int, detokenizer: Detokenizer) -> None:
        self._strings, self._min_tokens, self._detokenizer = tuple(strings), min_tokens, detokenizer
        if strings:
            detokenizer.text([])

    def __bool__(self) -> bool:
        return bool(self._strings)

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these tokens completes a stop string: it reaches back from that token's text by less
        than its own length. The window grows by characters, not tokens, for there are tokens without text."""
        if len(tokens) <= self._min_tokens:
            return False
        text_of = self._detokenizer.text
        needed = max(map(len, self._strings)) + len(text_of(tokens[-1:])) + 2 * UNTRUSTED
        window = FIRST_WINDOW
        text = text_of(tokens[-window:])
        while len(text) < needed and window < len(tokens):
            window *= 2
            text = text_of(tokens[-window:])
        early = self._early_characters(tokens[-window:], len(tokens))
        return any(text.find(string, max(0, early - len(string) + 1)) >= 0 for string in self._strings)

    def _early_characters(self, window: Sequence[int], count: int) -> int:
        """How many characters of the last tokens, of so many, belong to the first `min_tokens`: a string among these
        ends nothing. An unfinished character belongs to the token that finishes it."""
        early = self._min_tokens - (count - len(window))
        return len(self._detokenizer.text(window[:early]).rstrip(UNFINISHED)) if early > 0 else 0
