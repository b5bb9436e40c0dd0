"""Replies taken apart: reasoning, tool calls and text, at once and in any pieces."""

import json
import random

import pytest

from weaver.compat.openai.reply import Part, ReplyParser

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'


def parsed(*pieces, tools=True, thinking=False):
    parser = ReplyParser(tools=tools, thinking=thinking)
    part = Part()
    for piece in pieces:
        part += parser.feed(piece)
    part += parser.finish()
    return part.reasoning, part.content, [(call.name, json.loads(call.arguments)) for call in part.calls]


ADD, STOP = ("add", {"a": 1, "b": "ü"}), ("stop", {})
REPLIES = {
    "text": ("Hello\n", ("", "Hello\n", [])),
    "call": (CALL, ("", "", [ADD])),
    "calls": (f"{CALL}\n{OTHER}", ("", "", [ADD, STOP])),
    "text_and_calls": (f"I add.\n{CALL}\n{OTHER}", ("", "I add.", [ADD, STOP])),
    "text_with_its_own_breaks": (f"I add.\n\n{CALL}", ("", "I add.\n", [ADD])),
    "reasoning": ("<think>\na < b\n</think>\n\nYes", ("a < b", "Yes", [])),
    "reasoning_and_call": (f"<think>\nadd\n</think>\n\n{CALL}", ("add", "", [ADD])),
    "all": (f"\n<think>x</think>y\n{CALL}\n\nz", ("x", "yz", [ADD])),
    "empty_reasoning": ("<think>\n\n</think>\n\nYes", ("", "Yes", [])),
    "cut_in_reasoning": ("<think>\nand so\n", ("and so", "", [])),
    "cut_in_the_tag": ("<think>\nand so\n</thi", ("and so\n</thi", "", [])),
    "cut_before_the_call_ends": (CALL.removesuffix("</tool_call>"), ("", "", [ADD])),
    "cut_inside_the_call": ('a\n<tool_call>\n{"name": "add"', ("", 'a\n<tool_call>\n{"name": "add"', [])),
    "no_json": ("a\n<tool_call>add(1)</tool_call> b", ("", "a\n<tool_call>add(1)</tool_call> b", [])),
    "no_name": ('<tool_call>{"arguments": {}}</tool_call>', ("", '<tool_call>{"arguments": {}}</tool_call>', [])),
    "no_object": ("<tool_call>[1]</tool_call>", ("", "<tool_call>[1]</tool_call>", [])),
    "not_a_number": (
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        ("", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', []),
    ),
    "half_a_pair": (
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>',
        ("", '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', []),
    ),
    "arguments_as_text": (
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        ("", "", [("f", {"x": 1})]),
    ),
    "no_arguments": ('<tool_call>{"name": "f"}</tool_call>', ("", "", [("f", {})])),
    "a_bad_call_and_a_good_one": (f"<tool_call>?</tool_call>\n{CALL}", ("", "<tool_call>?</tool_call>", [ADD])),
    "almost_tags": ("a <tool <think> <<tool_cal", ("", "a <tool <think> <<tool_cal", [])),
    "nothing": ("", ("", "", [])),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_taken_apart(name):
    text, expected = REPLIES[name]
    assert parsed(text) == expected


@pytest.mark.parametrize("name", REPLIES)
def test_pieces_make_the_same_reply_wherever_it_is_cut(name):
    text, expected = REPLIES[name]
    assert parsed(*text) == expected
    generator = random.Random(0)
    for _ in range(50):
        cuts = sorted(generator.choices(range(len(text) + 1), k=3))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
        assert parsed(*pieces) == expected, pieces


def test_text_is_told_as_soon_as_it_can_be_no_tag():
    parser = ReplyParser(tools=True)
    assert [parser.feed(piece).content for piece in ("H", "i <to", "day\n", "x<tool_call>{")] == [
        "H",
        "i ",
        "<today",
        "\nx",
    ]


def test_without_tools_a_call_is_text():
    assert parsed(CALL, tools=False) == ("", CALL, [])


def test_reasoning_that_the_prompt_began_needs_no_tag_of_its_own():
    assert parsed("and so\n</think>\n\nYes", thinking=True) == ("and so", "Yes", [])


def test_every_call_has_an_id_of_its_own():
    parser = ReplyParser(tools=True)
    calls = parser.feed(f"{CALL}\n{CALL}").calls
    assert len({call.call_id for call in calls}) == 2
    assert all(call.call_id.startswith("call_") for call in calls)
