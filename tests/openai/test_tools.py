"""A model that has learned to think, to call a tool and to answer, through the official client."""

import json

import openai
import pytest

from .conftest import FIRST_REPLY, MODEL, PLAIN, QUESTION, SECOND_REPLY, THOUGHT, TOOL


def ask(client, model, messages, **more):
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=120, **more)


def test_a_tool_call_is_parsed_and_its_reasoning_told_apart(client, tool_user):
    answer = ask(client, tool_user, [QUESTION], tools=[TOOL], tool_choice="auto")
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert (choice.message.content, choice.message.reasoning_content) == (None, THOUGHT)
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "add", {"a": 2, "b": 3})
    assert choice.finish_reason == "tool_calls"
    assert answer.weight_version == tool_user


def test_two_turns_are_one_sequence_of_tokens(client, tool_user, tokenizer):
    """As a trainer joins turns: what the second is computed on begins with all of the first, token for token."""
    first = ask(client, tool_user, [QUESTION], tools=[TOOL])
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "name": "add", "content": "5"}
    second = ask(client, tool_user, [QUESTION, message, result], tools=[TOOL])
    assert second.choices[0].message.content + "<|im_end|>" == SECOND_REPLY
    assert second.choices[0].finish_reason == "stop"
    begun = first.nexrl_train["prompt_tokens"] + first.nexrl_train["response_tokens"]
    assert tokenizer.decode(first.nexrl_train["response_tokens"]) == FIRST_REPLY
    assert second.nexrl_train["prompt_tokens"][: len(begun)] == begun
    assert second.usage.prompt_tokens_details.cached_tokens >= len(begun) - 1


@pytest.mark.parametrize("arguments", ['{"a": 2, "b": 3}', '{ "a":2,"b":3 }'])
def test_arguments_that_are_text_reach_the_template_as_an_object(arguments, client, tool_user, tokenizer):
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [
        QUESTION,
        {"role": "assistant", "content": "Well.", "tool_calls": [called]},
        {"role": "user", "content": "?"},
    ]
    told = ask(client, tool_user, messages, tools=[TOOL]).nexrl_train["prompt_tokens"]
    parsed = {**messages[1], "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]}
    expected = tokenizer.apply_chat_template(
        [QUESTION, parsed, messages[2]], tools=[TOOL], add_generation_prompt=True, return_dict=False
    )
    assert told == expected
    assert '\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>' in tokenizer.decode(told)


def test_a_stream_tells_the_same_call(client, tool_user):
    whole = ask(client, tool_user, [QUESTION], tools=[TOOL]).choices[0].message
    with client.chat.completions.stream(
        model=tool_user, messages=[QUESTION], tools=[TOOL], temperature=0, max_tokens=120
    ) as stream:
        final = stream.get_final_completion().choices[0]
    [call] = final.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", whole.tool_calls[0].function.arguments)
    assert final.finish_reason == "tool_calls"
    chunks = ask(client, tool_user, [QUESTION], tools=[TOOL], stream=True)
    told = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
    assert "".join(told) == THOUGHT
    assert len([one for one in told if one]) > 1


def test_with_tool_choice_none_the_model_sees_no_tools_and_text_stays_text(client, tool_user, tokenizer):
    answer = ask(client, tool_user, [QUESTION], tools=[TOOL], tool_choice="none")
    expected = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_dict=False)
    assert answer.nexrl_train["prompt_tokens"] == expected
    assert answer.choices[0].message.tool_calls is None


def test_a_call_whose_end_is_a_stop_string_is_still_a_call(client, tool_user):
    choice = ask(client, tool_user, [QUESTION], tools=[TOOL], stop=["</tool_call>"]).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["add"]


@pytest.mark.parametrize(
    ("model", "more", "field"),
    [
        (MODEL, {"tool_choice": "required"}, "tool_choice"),
        (MODEL, {"tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice"),
        (MODEL, {"parallel_tool_calls": False}, "parallel_tool_calls"),
        (
            MODEL,
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools[0].function.strict",
        ),
        (MODEL, {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        (PLAIN, {}, "tools"),
    ],
)
def test_what_cannot_be_enforced_or_shown_is_refused_by_name(model, more, field, client):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, model, [QUESTION], **{"tools": [TOOL], **more})
    assert refused.value.param == field
    assert field in refused.value.body["message"]


def test_a_template_without_tool_calls_refuses_them_in_earlier_turns(client):
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, PLAIN, [QUESTION, {"role": "assistant", "tool_calls": [called]}])
    assert refused.value.param == "messages[1].tool_calls"


def test_a_template_without_reasoning_gets_it_as_the_model_wrote_it(client, tokenizer):
    messages = [QUESTION, {"role": "assistant", "content": "Yes", "reasoning_content": THOUGHT}, QUESTION]
    told = tokenizer.decode(ask(client, PLAIN, messages).nexrl_train["prompt_tokens"])
    assert f"<|im_start|>assistant\n<think>\n{THOUGHT}\n</think>\n\nYes<|im_end|>" in told


def test_what_the_template_reads_can_be_set_and_nothing_else(client, tool_user, tokenizer):
    answer = ask(client, MODEL, [QUESTION], extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert tokenizer.decode(answer.nexrl_train["prompt_tokens"]).endswith("<think>\n\n</think>\n\n")
    for unread in ("thinking_budget", "tokenize", "messages"):
        with pytest.raises(openai.BadRequestError, match=f"chat_template_kwargs.{unread} is not read"):
            ask(client, MODEL, [QUESTION], extra_body={"chat_template_kwargs": {unread: False}})
