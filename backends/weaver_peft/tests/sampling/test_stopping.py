from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from weaver_peft.base_model import load_base_model
from weaver_peft.decoding import DecodeLoop
from weaver_peft.stopping import Detokenizer, StopRule

from weaver.backend import ModelSource
from weaver.domain import SampleRequest, SamplingParams, StopReason
from weaver.errors import InvalidInput

from .tiny import LIMITS, SIZES, add, ask, prompt, run


def greedy_tokens(loop, **params):
    [result] = run(loop, ask(temperature=0, **params))
    return result.sequences[0]


def test_a_stop_token_is_the_last_one_returned(loop):
    free = greedy_tokens(loop).tokens.tolist()
    stop = free[4]
    stopped = greedy_tokens(loop, stop_token_ids=(stop, 3))
    assert stopped.tokens.tolist() == free[: free.index(stop) + 1]
    assert len(stopped.logprobs) == len(stopped.tokens)
    assert stopped.stop_reason is StopReason.STOP


def test_without_stop_tokens_the_models_own_end_the_sequence_and_with_none_nothing_does(base):
    free = greedy_tokens(DecodeLoop(base, LIMITS))
    assert free.stop_reason is StopReason.LENGTH
    end = int(free.tokens[3])
    ending = replace(base, facts=replace(base.facts, end_token_ids=(end,)))
    stopped = greedy_tokens(DecodeLoop(ending, LIMITS), stop_token_ids=None)
    assert stopped.tokens.tolist() == free.tokens[: free.tokens.tolist().index(end) + 1].tolist()
    assert greedy_tokens(DecodeLoop(ending, LIMITS), stop_token_ids=()).tokens.tolist() == free.tokens.tolist()


def test_stop_strings_without_a_tokenizer_fail_that_request_alone(loop):
    bad = add(loop, ask(stop_strings=("x",)))
    run(loop, ask())
    with pytest.raises(InvalidInput, match="stop strings need a tokenizer, and 'tiny' has none"):
        bad.result(timeout=0)


# Stop strings

VOCABULARY = 300  # 256 bytes, two merges, and ids without text, as padded vocabularies have them


@pytest.fixture(scope="module")
def byte_base(tmp_path_factory):
    """A model with a byte-level tokenizer: token i is byte i, 256 is "he" and 257 is "ll"."""
    folder = tmp_path_factory.mktemp("bytes")
    letters = bytes_to_unicode()
    vocabulary = {letters[byte]: byte for byte in range(256)} | {"he": 256, "ll": 257}
    tokenizer = Tokenizer(BPE(vocabulary, [("h", "e"), ("l", "l")]))
    tokenizer.decoder = ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": VOCABULARY})).save_pretrained(folder)
    return load_base_model(ModelSource("bytes", str(folder), device="cpu"))


def rule(base, *strings, min_tokens=0):
    params = SamplingParams(9, stop_token_ids=(), stop_strings=strings, min_tokens=min_tokens)
    return StopRule.of_params(params, base, Detokenizer(base))


def ends_at(stop, tokens):
    """The number of tokens after which the sequence is over."""
    return next((count for count in range(1, len(tokens) + 1) if stop.ends(tokens[:count])), None)


@pytest.mark.parametrize(
    ("strings", "tokens", "end"),
    [
        (["b"], [*b"aabaa"], 3),
        (["ello"], [*b"a ", 256, 257, *b"o you"], 5),  # begins and ends inside tokens
        (["hell", "e"], [*b"ab", 256, 257], 3),
        (["é"], [*"aé".encode()], 3),  # complete with its second byte
        (["\n"], [*b"a\n", 0xC3], 2),
        (["ab"], [*b"a", 290, 291, *b"b"], 4),  # tokens without text between
        (["ab"], [*b"a", *[290] * 100, *b"b"], 102),
        (["日本語" * 9], [*("x" * 40 + "日本語" * 9 + "y").encode()], 40 + 81),
        (["x" * 40], [*b"x" * 50], 40),
        (["no"], [*b"maybe"], None),
    ],
)
def test_a_sequence_ends_with_the_token_that_completes_a_stop_string(byte_base, strings, tokens, end):
    assert ends_at(rule(byte_base, *strings), tokens) == end


@pytest.mark.parametrize(
    ("strings", "tokens", "least", "end"),
    [
        (["b"], [*b"aba"], 1, 2),
        (["b"], [*b"aba"], 2, None),  # it was complete with the second token
        (["b"], [*b"abab"], 2, 4),
        (["ab"], [*b"ab"], 1, 2),  # it may begin early
        (["ab"], [*b"abab"], 2, 4),
        (["aa"], [*b"aaa"], 2, 3),  # the second place at which it is
        (["é"], [*"é".encode()], 1, 2),
        (["é"], [*"éé".encode()], 2, 4),
        (["ell"], [256, 257, *b" h", 256, 257], 2, 6),
        (["x" * 5], [*b"x" * 40], 30, 31),
        (["ab"], [*b"ab", *[290] * 100, *b"ab"], 50, 104),
        (["ab"], [*b"ab" * 30], 60, None),
    ],
)
def test_a_stop_string_counts_where_a_token_after_the_first_min_tokens_completes_it(
    byte_base, strings, tokens, least, end
):
    assert ends_at(rule(byte_base, *strings, min_tokens=least), tokens) == end


def test_no_token_of_the_first_min_tokens_ends_a_sequence(byte_base):
    params = SamplingParams(9, stop_token_ids=(98,), min_tokens=2)
    assert ends_at(StopRule.of_params(params, byte_base, Detokenizer(byte_base)), [*b"abab"]) == 4


def test_stop_strings_are_found_where_the_whole_text_has_them(byte_base):
    generator = np.random.default_rng(0)
    for _ in range(50):
        tokens = generator.choice([*"abé".encode(), 256, 257, 290], 80).tolist()
        strings = ["".join(generator.choice([*"abéhel"], 5)) for _ in range(20)]
        stop = rule(byte_base, *strings)
        whole = [any(string in stop.detokenizer.text(tokens[:count]) for string in strings) for count in range(1, 81)]
        assert ends_at(stop, tokens) == (whole.index(True) + 1 if any(whole) else None)


def test_a_stop_string_ends_a_sample_and_so_does_the_models_end(byte_base):
    request = SampleRequest(prompt(0), 1, SamplingParams(60, temperature=0, stop_token_ids=()))
    [free] = run(DecodeLoop(byte_base, LIMITS), request)
    tokens = free.sequences[0].tokens.tolist()
    text = Detokenizer(byte_base).text(tokens)
    wanted = next(text[at : at + 2] for at in range(20, 58) if text[at : at + 2].isascii())
    stopped = replace(request, params=replace(request.params, stop_strings=(wanted,)))
    [result] = run(DecodeLoop(byte_base, LIMITS), stopped)
    found = result.sequences[0]
    assert found.tokens.tolist() == tokens[: len(found.tokens)]
    assert found.stop_reason is StopReason.STOP
    assert wanted in Detokenizer(byte_base).text(found.tokens.tolist())
    assert wanted not in Detokenizer(byte_base).text(found.tokens.tolist()[:-1])
    ending = replace(byte_base, facts=replace(byte_base.facts, end_token_ids=(tokens[0],)))
    both = replace(stopped, params=replace(stopped.params, stop_token_ids=None))
    [result] = run(DecodeLoop(ending, LIMITS), both)
    assert result.sequences[0].tokens.tolist() == tokens[:1]
