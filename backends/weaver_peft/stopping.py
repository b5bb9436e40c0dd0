"""Says when a sampled sequence is over: at a stop token, or at the token that completes a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import AutoTokenizer

from weaver.domain import SamplingParams
from weaver.errors import InvalidInput
from weaver_peft.base_model import BaseModel

# A window of tokens may begin inside a character, which then decodes to at most 3 replacement characters, and may lose
# a leading space. So many characters at its beginning are not trusted to be the text's own.
UNTRUSTED_CHARACTERS = 4
FIRST_WINDOW = 16
UNFINISHED = "\ufffd"


class Detokenizer:
    """The model's tokenizer, loaded when a stop string first needs it."""

    def __init__(self, base: BaseModel) -> None:
        self._name, self._location = base.facts.name, base.facts.tokenizer_location
        self._vocabulary_size = base.facts.vocabulary_size

    def text(self, tokens: Sequence[int]) -> str:
        """The raw text, special tokens included."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _tokenizer(self) -> Any:
        needs = f"stop strings need a tokenizer, and {self._name!r} has none"
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._location)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInput(f"{needs} that can be loaded from {self._location!r}: {error}") from error
        if 2 * len(tokenizer) < self._vocabulary_size:  # where files are missing, transformers makes up an empty one
            raise InvalidInput(f"{needs} that knows its tokens in {self._location!r}")
        return tokenizer


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a sequence of one request is over."""

    token_ids: frozenset[int]
    strings: tuple[str, ...]
    min_tokens: int
    detokenizer: Detokenizer

    @classmethod
    def of_params(cls, params: SamplingParams, base: BaseModel, detokenizer: Detokenizer) -> "StopRule":
        """Raises InvalidInput where stop strings are given and the model has no tokenizer."""
        token_ids = base.facts.end_token_ids if params.stop_token_ids is None else params.stop_token_ids
        if params.stop_strings:
            detokenizer.text([])
        return cls(frozenset(token_ids), params.stop_strings, params.min_tokens, detokenizer)

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last of the tokens drawn so far ends the sequence."""
        if len(tokens) <= self.min_tokens:
            return False
        return tokens[-1] in self.token_ids or (bool(self.strings) and self._string_ends(tokens))

    def _string_ends(self, tokens: Sequence[int]) -> bool:
        """A string that the last token completes reaches back from that token's text by less than its own length.

        The window grows by characters, not tokens, for there are tokens without text.
        """
        needed = max(map(len, self.strings)) + len(self.detokenizer.text(tokens[-1:])) + 2 * UNTRUSTED_CHARACTERS
        window = FIRST_WINDOW
        text = self.detokenizer.text(tokens[-window:])
        while len(text) < needed and window < len(tokens):
            window *= 2
            text = self.detokenizer.text(tokens[-window:])
        early = self._early_characters(tokens[-window:], len(tokens))
        return any(text.find(string, max(0, early - len(string) + 1)) >= 0 for string in self.strings)

    def _early_characters(self, window: Sequence[int], count: int) -> int:
        """How many characters of the last tokens, of so many, belong to the first `min_tokens`: a string among these
        ends nothing. An unfinished character belongs to the token that finishes it."""
        early = self.min_tokens - (count - len(window))
        return len(self.detokenizer.text(window[:early]).rstrip(UNFINISHED)) if early > 0 else 0
