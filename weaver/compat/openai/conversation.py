"""Messages as chat templates read them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from weaver.compat.openai.errors import FieldRefused
from weaver.compat.openai.language import Language
from weaver.compat.openai.requests import ChatCompletion, Message, PastCall
from weaver.domain import IntArray


def prompt_of(asked: ChatCompletion, language: Language) -> IntArray:
    """The tokens of the conversation. Raises FieldRefused for what the model's template would leave out."""
    messages = [_for_template(message, place, language) for place, message in enumerate(asked.messages)]
    return language.prompt(messages, asked.shown_tools, asked.chat_template_kwargs)


def _for_template(message: Message, place: int, language: Language) -> Mapping[str, Any]:
    """One turn. Templates of their own time know no developers; what that role says is the system's."""
    role = "system" if message.role == "developer" and not language.reads("developer") else message.role
    told: dict[str, Any] = {"role": role, "content": message.text}
    if message.name is not None:
        told["name"] = message.name
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        told["tool_calls"] = _calls(message.tool_calls, place, language)
    if message.thoughts and language.reads("reasoning_content"):
        told["reasoning_content"] = message.thoughts
    elif message.thoughts:  # as the model wrote it, and as replies are parsed
        told["content"] = f"<think>\n{message.thoughts}\n</think>\n\n{message.text}"
    return told


def _calls(calls: Sequence[PastCall], place: int, language: Language) -> list[dict[str, Any]]:
    if not language.reads("tool_calls"):
        raise FieldRefused(
            f"messages[{place}].tool_calls: the model's chat template has no place for them, so it would not see them",
            f"messages[{place}].tool_calls",
        )
    return [
        {
            **({} if call.id is None else {"id": call.id}),
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": _arguments(call, f"messages[{place}].tool_calls[{index}].function.arguments"),
            },
        }
        for index, call in enumerate(calls)
    ]


def _arguments(call: PastCall, field: str) -> dict[str, Any]:
    """As an object: templates write JSON of it, and would quote a string a second time."""
    given = call.function.arguments
    try:
        parsed = json.loads(given or "{}") if isinstance(given, str) else given
    except ValueError as error:
        raise FieldRefused(f"{field} is no JSON: {error}", field) from None
    if not isinstance(parsed, dict):
        raise FieldRefused(f"{field} is no JSON object", field)
    return parsed
