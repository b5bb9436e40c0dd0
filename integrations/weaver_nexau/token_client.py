"""The client that NexAU calls with tokens (`api_type: generate_with_token`), over weaver's `SamplingClient`."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import uuid4

from weaver import types

_CALL: Final = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_READ: Final = frozenset({"max_new_tokens", "temperature", "top_p", "top_k", "stop", "stop_token_ids", "n"})
_ONLY: Final = {
    "n": 1, "min_p": 0, "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_new_tokens": 0,
    "ignore_eos": False,
}  # fmt: skip


class Sampler(Protocol):
    """What is needed of a `SamplingClient`."""

    def sample(self, *, prompt: types.ModelInput, sampling_params: types.SamplingParams) -> Mapping[str, Any]: ...


class TokenClient:
    """Answers `generate_with_token` with a message, and beside it the very tokens that were drawn.

    `tools` travel in the prompt, which NexAU has written already; they are not read again.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def generate_with_token(
        self,
        *,
        model: str,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        return_logprob: bool = True,
    ) -> dict[str, Any]:
        """One answer to these tokens. Raises ValueError for a sampling parameter that weaver does not have."""
        params, prompt = _params(sampling_params or {}), list(map(int, input_ids))
        answer = self._sampler.sample(prompt=types.ModelInput.from_ints(prompt), sampling_params=params)
        sequence = answer["sequences"][0]
        tokens, logprobs = list(sequence["tokens"]), list(sequence["logprobs"])
        return {
            "model": model,
            "choices": [{"index": 0, "message": message(sequence["text"]), "finish_reason": sequence["stop_reason"]}],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(tokens),
                "total_tokens": len(prompt) + len(tokens),
            },
            "nexrl_train": {"prompt_tokens": prompt, "response_tokens": tokens, "response_logprobs": logprobs},
        }


def _params(given: Mapping[str, Any]) -> types.SamplingParams:
    """Every one is read, or is what weaver does anyway, or is refused."""
    for name, value in given.items():
        if name in _ONLY and value != _ONLY[name]:
            raise ValueError(f"sampling_params.{name} is {value!r}, but weaver samples with {_ONLY[name]!r} only")
        if name not in _READ | _ONLY.keys():
            raise ValueError(f"sampling_params.{name} is not known here; leave it out")
    stop = given.get("stop", [])
    return types.SamplingParams(
        max_tokens=given.get("max_new_tokens"),
        temperature=given.get("temperature", 1.0),
        top_p=given.get("top_p", 1.0),
        top_k=given.get("top_k", -1),
        stop=[*([stop] if isinstance(stop, str) else stop), *given.get("stop_token_ids", [])],
    )


def message(text: str) -> dict[str, Any]:
    """The assistant's message that this text is: `<tool_call>` elements become tool calls, the rest the content.

    What is not a call (broken JSON, no name) stays in the content, where an agent's author sees it.
    """
    calls: list[dict[str, Any]] = []

    def take(found: re.Match[str]) -> str:
        call = _call(found[1])
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    content = _CALL.sub(take, text).strip()
    made: dict[str, Any] = {"role": "assistant", "content": content}
    return made | ({"tool_calls": calls} if calls else {})


def _call(written: str) -> dict[str, Any] | None:
    try:
        found = json.loads(written)
        name, arguments = found["name"], found.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    function = {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
    return {"id": f"call_{uuid4().hex}", "type": "function", "function": function}
