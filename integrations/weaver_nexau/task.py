"""A task of two turns: to tell a person's number an agent must ask the tool for it, and then say what it got."""

import json
from typing import Any, Final

SYSTEM: Final = "Ask the tool for the number, then say it."
TOOL: Final[Any] = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "The number of a person.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}
KNOWN: Final = (
    "Ada", "Alan", "Anna", "Ben", "Carl", "Cora", "Dan", "Dora", "Emil", "Emma", "Eva", "Finn", "Fred", "Gina", "Greta",
    "Hans", "Hugo", "Ida", "Ivan", "Jack", "Jane", "Joel", "Karl", "Kate",
)  # fmt: skip
"""Whom the warm-up is about."""
ASKED: Final = (
    "Lara", "Leo", "Lisa", "Luca", "Lucy", "Maria", "Mark", "Max", "Mia", "Mike", "Mona", "Nick", "Nina", "Nora",
    "Olga", "Oscar", "Otto", "Paul", "Peter", "Rita", "Rosa", "Ruth", "Sam", "Sara", "Simon", "Tim", "Tina", "Tom",
    "Vera", "Victor", "Walter", "Zoe",
)  # fmt: skip
"""Whom the agent is asked about afterwards: nobody it has seen."""


def lookup(name: str) -> str:
    """The number of a person, as the tool gives it: two digits, the same ones for the same name."""
    return str(10 + sum(place * ord(letter) for place, letter in enumerate(name, start=3)) % 90)


def question(name: str) -> str:
    return f"What is {name}'s number?"


def reward(name: str, called: list[tuple[str, Any]], answer: str) -> float:
    """Half for calling the tool once, with the right name; all of it if the answer then has the number.

    `called` has the tools' names and arguments, in order, as JSON or read.
    """
    read = [(tool, json.loads(arguments) if isinstance(arguments, str) else arguments) for tool, arguments in called]
    if read != [("lookup", {"name": name})]:
        return 0.0
    return 1.0 if lookup(name) in answer else 0.5


def conversation(name: str) -> list[dict[str, Any]]:
    """How it goes when it goes well, in OpenAI's messages."""
    call = {"id": "call_0", "type": "function", "function": {"name": "lookup", "arguments": {"name": name}}}
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question(name)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": lookup(name)},
        {"role": "assistant", "content": f"{name}'s number is {lookup(name)}."},
    ]
