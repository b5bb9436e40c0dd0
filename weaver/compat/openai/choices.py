"""Choices as clients read them: whole, and in the pieces of a stream."""

from collections.abc import Sequence
from typing import Any, Protocol

from weaver.compat.openai.jobs import Job
from weaver.compat.openai.reply import Part, ReplyParser
from weaver.compat.openai.requests import ChatCompletion
from weaver.compat.openai.text import GrowingText
from weaver.compat.openai.tokens import completion_logprobs, content_logprobs
from weaver.domain import DrawnToken, IntArray, SampledSequence, StopReason

Json = dict[str, Any]


class Choice(Protocol):
    """One of the samples on its way to a client. Every token is told once, in order."""

    @property
    def heard(self) -> int:
        """How many tokens it was told."""

    def begin(self) -> Json | None:
        """What a stream says before the first token."""

    def more(self, drawn: Sequence[DrawnToken]) -> Json | None:
        """The entry of a chunk; None: nothing can be told of them yet."""

    def end(self, drawn: Sequence[DrawnToken], reason: StopReason) -> Json:
        """The entry of the last chunk, after the last tokens."""

    def whole(self, drawn: Sequence[DrawnToken], reason: StopReason) -> Json:
        """The entry of an answer that comes at once."""


class ChatChoice:
    """A message of the assistant's."""

    def __init__(self, job: Job, asked: ChatCompletion, index: int) -> None:
        self.heard = 0
        self._job, self._asked, self._index = job, asked, index
        self._text = GrowingText(job.language, job.ending)
        self._parser = ReplyParser(tools=bool(asked.shown_tools), thinking=_opens_thinking(job))
        self._calls = 0

    def begin(self) -> Json | None:
        return self._entry("delta", {"role": "assistant", "content": ""}, (), None)

    def more(self, drawn: Sequence[DrawnToken]) -> Json | None:
        delta = self._delta(self._feed(drawn))
        told = delta or self._asked.logprobs or self._asked.return_token_ids
        return self._entry("delta", delta, drawn, None) if told else None

    def end(self, drawn: Sequence[DrawnToken], reason: StopReason) -> Json:
        part = self._feed(drawn) + self._finish(reason)
        return self._entry("delta", self._delta(part), drawn, self._finish_reason(reason))

    def whole(self, drawn: Sequence[DrawnToken], reason: StopReason) -> Json:
        part = self._feed(drawn) + self._finish(reason)
        message: Json = {"role": "assistant", "content": None if part.calls else "", "refusal": None}
        return self._entry("message", message | self._delta(part, streamed=False), drawn, self._finish_reason(reason))

    def _feed(self, drawn: Sequence[DrawnToken]) -> Part:
        self.heard += len(drawn)
        return self._parser.feed(self._text.feed([one.token for one in drawn]))

    def _finish(self, reason: StopReason) -> Part:
        part = self._parser.feed(self._text.finish(stopped=reason is StopReason.STOP))
        return part + self._parser.finish()

    def _delta(self, part: Part, *, streamed: bool = True) -> Json:
        told: Json = {}
        if part.reasoning:
            told["reasoning_content"] = part.reasoning
        if part.content:
            told["content"] = part.content
        if part.calls:
            told["tool_calls"] = [
                {
                    **({"index": self._calls + place} if streamed else {}),
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(part.calls)
            ]
            self._calls += len(part.calls)
        return told

    def _finish_reason(self, reason: StopReason) -> str:
        return "tool_calls" if self._calls and reason is StopReason.STOP else reason.value

    def _entry(self, name: str, value: Json, drawn: Sequence[DrawnToken], finish_reason: str | None) -> Json:
        told = None
        if self._asked.logprobs and drawn:
            told = {"content": content_logprobs(self._job, drawn), "refusal": None}
        ids = {"token_ids": [one.token for one in drawn]} if self._asked.return_token_ids else {}
        return {"index": self._index, name: value, "logprobs": told, "finish_reason": finish_reason, **ids}


class TextChoice:
    """A continuation of a text."""

    def __init__(self, job: Job, index: int) -> None:
        self.heard = 0
        self._job, self._index = job, index
        self._text = GrowingText(job.language, job.ending)
        self._offset = 0

    def begin(self) -> Json | None:
        return None

    def more(self, drawn: Sequence[DrawnToken]) -> Json | None:
        text, asked = self._feed(drawn), self._job.asked
        told = text or asked.logprobs is not None or asked.return_token_ids
        return self._entry(text, drawn, None) if told else None

    def end(self, drawn: Sequence[DrawnToken], reason: StopReason) -> Json:
        text = self._feed(drawn) + self._text.finish(stopped=reason is StopReason.STOP)
        return self._entry(text, drawn, reason.value)

    def whole(self, drawn: Sequence[DrawnToken], reason: StopReason) -> Json:
        return self.end(drawn, reason)

    def _feed(self, drawn: Sequence[DrawnToken]) -> str:
        self.heard += len(drawn)
        return self._text.feed([one.token for one in drawn])

    def _entry(self, text: str, drawn: Sequence[DrawnToken], finish_reason: str | None) -> Json:
        asked, told = self._job.asked, None
        if asked.logprobs is not None and drawn:
            told, self._offset = completion_logprobs(self._job, drawn, self._offset)
        entry: Json = {"index": self._index, "text": text, "logprobs": told, "finish_reason": finish_reason}
        if asked.return_token_ids:
            prompt = self._job.prompts[self._index // asked.n]
            entry |= {"prompt_token_ids": prompt.tolist(), "token_ids": [one.token for one in drawn]}
        return entry


def choices_of(job: Job) -> list[Choice]:
    """One for each sample of each prompt."""
    count = len(job.prompts) * job.asked.n
    if isinstance(job.asked, ChatCompletion):
        return [ChatChoice(job, job.asked, index) for index in range(count)]
    return [TextChoice(job, index) for index in range(count)]


def trained_on(prompt: IntArray, sequence: SampledSequence) -> Json:
    """What a trainer needs of a sample: exactly the tokens that were computed on and drawn, the stop token too, and the
    logprobs they were drawn with."""
    return {
        "prompt_tokens": prompt.tolist(),
        "response_tokens": sequence.tokens.tolist(),
        "response_logprobs": sequence.logprobs.tolist(),
    }


def _opens_thinking(job: Job) -> bool:
    """Whether the prompt ends with the tag that begins reasoning, so that the reply does not have it."""
    return job.language.text(job.prompts[0][-8:].tolist()).rstrip("\n").endswith("<think>")
