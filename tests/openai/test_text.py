"""Tokens to text: in pieces as at once, whole characters only, and up to what stopped it."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from weaver.compat.openai.language import Language
from weaver.compat.openai.text import Ending, GrowingText
from weaver.errors import InvalidInput


@pytest.fixture(scope="module")
def language(tokenizer):
    return Language("tiny", tokenizer)


def ending(*strings, tokens=(), keeps_stop=False, skips_special=True, min_tokens=0):
    return Ending(frozenset(tokens), strings, keeps_stop, skips_special, min_tokens)


def grown(language, ending, pieces, stopped=True):
    text = GrowingText(language, ending)
    told = [text.feed(piece) for piece in pieces]
    return [*told, text.finish(stopped=stopped)]


def test_pieces_make_the_same_text_as_the_whole(language, tokenizer):
    generator = random.Random(1)
    for _ in range(200):
        tokens = [generator.randrange(len(tokenizer)) for _ in range(generator.randrange(1, 30))]
        whole = "".join(grown(language, ending("th"), [tokens], stopped=False))
        assert "".join(grown(language, ending("th"), [[token] for token in tokens], stopped=False)) == whole
        cut = generator.randrange(len(tokens))
        assert "".join(grown(language, ending("th"), [tokens[:cut], tokens[cut:]], stopped=False)) == whole


def test_the_text_is_the_tokenizers_own(language, tokenizer):
    written = "the thing: häagen 東京 \U0001f9f6 the<|im_end|><think>the"
    tokens = tokenizer.encode(written)
    assert "".join(grown(language, ending(), [tokens])) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(grown(language, ending(skips_special=False), [tokens])) == written


def spaced_tokenizer():
    """As SentencePiece's: words begin with a mark, a text's first word loses it, and unknown characters are bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeh", "he", "▁he", "▁a"]
    merges = [("h", "e"), ("▁", "he"), ("▁", "a")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_spaces_are_not_lost_where_tokenizers_take_off_the_first():
    tokenizer = spaced_tokenizer()
    written = "he had a 東 he"
    tokens = tokenizer.encode(written)
    assert tokenizer.decode(tokens) == written
    spaced = Language("spaced", tokenizer)
    assert "".join(grown(spaced, ending(), [[token] for token in tokens])) == written
    assert "".join(grown(spaced, ending(), [tokens])) == written
    assert b"".join(spaced.bytes_of(token) for token in tokens).decode() == f" {written}"


def test_a_character_comes_when_all_its_bytes_have(language, tokenizer):
    tokens = tokenizer.encode("a東b")
    assert len(tokens) == 5
    assert grown(language, ending(), [[token] for token in tokens]) == ["a", "", "", "東", "b", ""]


def test_a_tokenizer_without_a_template_speaks_no_chat():
    bare = Language("bare", spaced_tokenizer())
    with pytest.raises(InvalidInput, match="'bare' has no chat template; use /v1/completions"):
        bare.prompt([{"role": "user", "content": "he"}], [], {})


def test_bytes_of_tokens_make_up_the_text(language, tokenizer):
    written = "the thing 東京 \n<tool_call>"
    found = b"".join(language.bytes_of(token) for token in tokenizer.encode(written))
    assert found.decode() == written


@pytest.mark.parametrize("pieces", ["one", "each"])
@pytest.mark.parametrize(
    ("strings", "keeps_stop", "expected"),
    [
        (["lo w"], False, "hel"),
        (["lo w"], True, "hello w"),
        (["zz", "w", "lo w"], False, "hel"),
        (["nothing"], False, "hello w"),
    ],
)
def test_a_stop_string_is_cut_off_unless_it_shall_stay(pieces, strings, keeps_stop, expected, language, tokenizer):
    tokens = tokenizer.encode("hello w")
    fed = [tokens] if pieces == "one" else [[token] for token in tokens]
    assert "".join(grown(language, ending(*strings, keeps_stop=keeps_stop), fed)) == expected


def test_what_may_become_a_stop_string_is_held_back(language, tokenizer):
    tokens = tokenizer.encode("abENc")
    assert grown(language, ending("END"), [[token] for token in tokens], stopped=False) == ["", "", "a", "b", "E", "Nc"]


def test_a_stop_string_may_hold_special_tokens(language, tokenizer):
    tokens = tokenizer.encode("hi!<|im_end|>")
    assert "".join(grown(language, ending("!<|im_end|>"), [[token] for token in tokens])) == "hi"


@pytest.mark.parametrize(("keeps_stop", "skips_special", "expected"), [
    (False, True, "hi"), (False, False, "hi"), (True, True, "hi"), (True, False, "hi<|im_end|>"),
])  # fmt: skip
def test_a_stop_token_is_text_only_where_both_options_say_so(keeps_stop, skips_special, expected, language, tokenizer):
    tokens = tokenizer.encode("hi<|im_end|>")
    end = ending(tokens=tokens[-1:], keeps_stop=keeps_stop, skips_special=skips_special)
    assert "".join(grown(language, end, [[token] for token in tokens])) == expected


def test_a_plain_stop_token_is_cut_off_too(language, tokenizer):
    tokens = tokenizer.encode("hi.")
    assert "".join(grown(language, ending(tokens=tokens[-1:]), [tokens])) == "hi"


@pytest.mark.parametrize(
    ("strings", "written", "least", "shown"),
    [
        (["b"], "abab", 2, "aba"),  # the second token completed the first
        (["b"], "abab", 1, "a"),
        (["ab"], "aabcab", 2, "a"),  # it may begin early
        (["ab"], "aabcab", 3, "aabc"),
        (["aa"], "aaa", 2, "a"),
        (["é"], "éxé", 1, ""),  # its second byte is a token of its own
        (["é"], "éxé", 2, "éx"),
    ],
)
def test_a_stop_string_of_the_first_min_tokens_is_text(language, tokenizer, strings, written, least, shown):
    tokens = tokenizer.encode(written)
    assert len(tokens) == len(written.encode())
    pieces = [[token] for token in tokens]
    for told in (pieces, [tokens], [tokens[:1], tokens[1:]]):
        assert "".join(grown(language, ending(*strings, min_tokens=least), told)) == shown
    free = "".join(grown(language, ending(*strings, min_tokens=least), pieces, stopped=False))
    assert free == written


def test_an_early_stop_string_does_not_hold_a_stream_back(language, tokenizer):
    told = grown(language, ending("b", min_tokens=2), [[token] for token in tokenizer.encode("abacad")], stopped=False)
    assert told == ["a", "b", "a", "c", "a", "d", ""]
