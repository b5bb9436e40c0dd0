"""The demo's data set keeps to the rule that it teaches, written out here a second time."""

import json
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "examples" / "pig_latin" / "pig_latin.jsonl"
PAIRS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def pig_latin(word: str) -> str:
    """A word that begins with a vowel gets "way". Else its first consonants, `qu` as one, move back and get "ay".

    y is a consonant at the beginning of a word and a vowel behind it.
    """
    end = 0
    while end < len(word) and word[end] not in "aeiou" and not (word[end] == "y" and end > 0):
        end += 2 if word.startswith("qu", end) else 1
    return word + "way" if end == 0 else word[end:] + word[:end] + "ay"


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("apple", "appleway"),
        ("string", "ingstray"),
        ("queen", "eenquay"),
        ("squirrel", "irrelsquay"),
        ("my", "ymay"),
        ("you", "ouyay"),
        ("eye", "eyeway"),
    ],
)
def test_the_rule(english, expected):
    assert pig_latin(english) == expected


def test_every_pair_keeps_to_the_rule():
    wrong = [pair for pair in PAIRS if " ".join(map(pig_latin, pair["english"].split())) != pair["pig_latin"]]
    assert wrong == []


def test_every_phrase_is_short_and_plain():
    assert all(2 <= len(pair["english"].split()) <= 6 for pair in PAIRS)
    assert all(pair["english"].replace(" ", "").isalpha() and pair["english"].islower() for pair in PAIRS)


def test_no_phrase_is_there_twice_and_none_is_both_trained_and_held_out():
    assert len({pair["english"] for pair in PAIRS}) == len(PAIRS)
    assert Counter(pair["split"] for pair in PAIRS) == {"train": 300, "held_out": 24}
