"""Answers whole or as a stream of server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from weaver.compat.openai.choices import Choice, choices_of, trained_on
from weaver.compat.openai.errors import answer_to
from weaver.compat.openai.jobs import Job
from weaver.compat.openai.requests import ChatCompletion
from weaver.compat.openai.sampling import Disconnected, Running
from weaver.compat.openai.tokens import drawn_tokens
from weaver.domain import DrawnToken, SampledSequence, SampleResult

Json = dict[str, Any]

_DONE: Final = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """What an answer, or every chunk of it, says of itself."""

    job: Job
    answer_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[SampleResult]) -> Json:
        choices = [
            choice.whole(drawn_tokens(sequence, index), sequence.stop_reason) | self._trained(index, results)
            for index, (choice, sequence) in enumerate(zip(choices_of(self.job), _sequences(results), strict=True))
        ]
        return self._head(streamed=False) | {"choices": choices, "usage": self._usage(results)} | self._last(results)

    def chunk(self, choices: Sequence[Json]) -> Json:
        usage = {"usage": None} if self.job.asked.tells_usage else {}
        return self._head(streamed=True) | {"choices": list(choices)} | usage

    def last_chunks(self, results: Sequence[SampleResult], choices: Sequence[Choice]) -> list[Json]:
        """A last entry for each choice; then, where it was asked for, the usage alone."""
        entries = []
        for index, (choice, sequence) in enumerate(zip(choices, _sequences(results), strict=True)):
            rest = drawn_tokens(sequence, index)[choice.heard :]
            entries.append(choice.end(rest, sequence.stop_reason) | self._trained(index, results))
        chunks = [self.chunk([entry]) for entry in entries]
        if self.job.asked.tells_usage:
            chunks.append(self.chunk([]) | {"usage": self._usage(results)})
        chunks[-1] |= self._last(results)
        return chunks

    def _head(self, *, streamed: bool) -> Json:
        chat = isinstance(self.job.asked, ChatCompletion)
        kind = f"chat.completion{'.chunk' if streamed else ''}" if chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.answer_id}",
            "object": kind,
            "created": self.created,
            "model": self.job.asked.model,
            "system_fingerprint": None,
        }

    def _last(self, results: Sequence[SampleResult]) -> Json:
        """What is ours, and vLLM's: which weights these were, what to train on, and the prompt's tokens."""
        job = self.job
        ours: Json = {
            "weight_version": job.target.weight_version,
            "nexrl_train": trained_on(job.prompts[0], results[0].sequences[0]),
        }
        if job.asked.return_token_ids and isinstance(job.asked, ChatCompletion):
            ours["prompt_token_ids"] = job.prompts[0].tolist()
        return ours

    def _trained(self, index: int, results: Sequence[SampleResult]) -> Json:
        """Where there are several choices each has its own; the answer has the first one's."""
        sequences, prompt = _sequences(results), self.job.prompts[index // self.job.asked.n]
        return {"nexrl_train": trained_on(prompt, sequences[index])} if len(sequences) > 1 else {}

    def _usage(self, results: Sequence[SampleResult]) -> Json:
        prompt = sum(map(len, self.job.prompts))
        drawn = sum(len(sequence.tokens) for sequence in _sequences(results))
        cached = sum(result.cached_prompt_tokens for result in results)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class Mailbox:
    """Tokens from the sampler's thread, for this event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._tokens: list[tuple[int, DrawnToken]] = []

    def put(self, choice: int, drawn: DrawnToken) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._add, choice, drawn)

    async def wait(self, running: Running) -> bool:
        """Until there are tokens; False: the samples are done. Raises what `Running.either` raises."""
        arrived = asyncio.create_task(self._arrived.wait())
        try:
            await running.either(arrived)
            return bool(self._tokens)
        finally:
            arrived.cancel()

    def take(self) -> dict[int, list[DrawnToken]]:
        """What there is, by choice."""
        tokens, self._tokens = self._tokens, []
        self._arrived.clear()
        taken: dict[int, list[DrawnToken]] = {}
        for choice, drawn in tokens:
            taken.setdefault(choice, []).append(drawn)
        return taken

    def _add(self, choice: int, drawn: DrawnToken) -> None:
        self._tokens.append((choice, drawn))
        self._arrived.set()


async def stream(envelope: Envelope, running: Running, mailbox: Mailbox) -> AsyncIterator[str]:
    """Events as tokens come, where the sampler tells of them; else all at the end. What fails on the way is told as an
    event, for the status has been sent."""
    choices = choices_of(envelope.job)
    try:
        for choice in choices:
            if (entry := choice.begin()) is not None:
                yield _event(envelope.chunk([entry]))
        while await mailbox.wait(running):
            for index, drawn in mailbox.take().items():
                if (entry := choices[index].more(drawn)) is not None:
                    yield _event(envelope.chunk([entry]))
        for chunk in envelope.last_chunks(await running.result(), choices):
            yield _event(chunk)
        yield _DONE
    except Disconnected:
        return
    except Exception as error:  # noqa: BLE001 -- whatever it is, the client shall hear of it
        yield _event(answer_to(error, "a stream")[1])
    finally:
        running.leave()


def _sequences(results: Sequence[SampleResult]) -> list[SampledSequence]:
    return [sequence for result in results for sequence in result.sequences]


def _event(body: Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
