"""The text of tokens as they come, up to what stopped them."""

from collections.abc import Sequence
from dataclasses import dataclass

from weaver.compat.openai.language import Language

_UNFINISHED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a text, and how much of it is shown. A stop token is the last one of its sequence; a stop string ends
    nothing where the first `min_tokens` complete it."""

    stop_tokens: frozenset[int]
    stop_strings: tuple[str, ...]
    keeps_stop: bool
    skips_special: bool
    min_tokens: int = 0


class GrowingText:
    """Told in pieces it is the same text as told at once. What may be the beginning of a character or of a stop string
    is held back until that is known."""

    def __init__(self, language: Language, ending: Ending) -> None:
        self._language, self._ending = language, ending
        self._run: list[int] = []  # tokens since the last special one
        self._told, self._settled = 0, 0  # of the run: decoded from `_told`, shown up to `_settled`
        self._held: list[tuple[str, bool]] = []  # characters, and whether they are shown
        self._heard, self._early = 0, 0  # tokens; how many of the held characters the first min_tokens have completed

    def feed(self, tokens: Sequence[int]) -> str:
        """The sequence goes on."""
        for token in tokens:
            if token in self._ending.stop_tokens and not self._ending.keeps_stop:
                continue
            if self._language.is_special(token):
                self._flush()
                self._hold(self._language.text([token]), shown=not self._ending.skips_special)
            else:
                self._run.append(token)
            self._heard += 1
            if self._heard == self._ending.min_tokens:
                self._decode(final=False)
                self._early = len(self._held)
        self._decode(final=False)
        return self._release(self._kept())

    def finish(self, *, stopped: bool) -> str:
        """The sequence is over; `stopped` by a stop token or string, not by its length."""
        self._flush()
        if stopped and not self._ending.keeps_stop:
            raw = "".join(character for character, _ in self._held)
            self._held = self._held[: min([len(raw), *self._stops(raw)])]
        return self._release(0)

    def _kept(self) -> int:
        """How many characters at the end may belong to a stop string."""
        if self._ending.keeps_stop or not self._ending.stop_strings:
            return 0
        return self._since_stop()

    def _since_stop(self) -> int:
        """All from the first place on at which a stop string is, or begins."""
        raw = "".join(character for character, _ in self._held)
        longest = max(map(len, self._ending.stop_strings))
        return max([min(longest - 1, len(raw)), *(len(raw) - place for place in self._stops(raw))])

    def _stops(self, raw: str) -> list[int]:
        """Where stop strings begin that end the text."""
        early = self._early if self._heard >= self._ending.min_tokens else len(raw)
        found = [raw.find(stop, max(0, early - len(stop) + 1)) for stop in self._ending.stop_strings]
        return [place for place in found if place >= 0]

    def _decode(self, *, final: bool) -> None:
        """A tokenizer may write a token otherwise at the beginning of a text, so tokens are decoded after the ones that
        were shown before them, which are then taken off."""
        before = self._language.text(self._run[self._told : self._settled])
        text = self._language.text(self._run[self._told :])
        if len(text) > len(before) and (final or not text.endswith(_UNFINISHED)):
            self._hold(text[len(before) :], shown=True)
            self._told, self._settled = self._settled, len(self._run)

    def _flush(self) -> None:
        """A run of plain tokens is over."""
        self._decode(final=True)
        self._run, self._told, self._settled = [], 0, 0

    def _hold(self, text: str, *, shown: bool) -> None:
        self._held += [(character, shown) for character in text]

    def _release(self, kept: int) -> str:
        ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._early = max(0, self._early - len(ready))
        return "".join(character for character, shown in ready if shown)
