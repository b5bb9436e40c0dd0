"""A request made ready: whom it asks, for what, and everything checked that can be before anything is drawn."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weaver.compat.openai.conversation import prompt_of
from weaver.compat.openai.errors import FieldRefused
from weaver.compat.openai.language import Language, language_of
from weaver.compat.openai.models import Target, target_of
from weaver.compat.openai.requests import ChatCompletion, Completion
from weaver.compat.openai.sampling import Samplers
from weaver.compat.openai.text import Ending
from weaver.domain import DrawnToken, IntArray, ModelFacts, SampleRequest, SamplingParams
from weaver.service import Service, door

Listener = Callable[[int, DrawnToken], None]
"""Hears of a choice, by its number, and its next token."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Choice i belongs to prompt i // n."""

    asked: ChatCompletion | Completion
    target: Target
    language: Language
    facts: ModelFacts
    prompts: Sequence[IntArray]

    @property
    def ending(self) -> Ending:
        asked = self.asked
        ends = () if asked.ignore_eos else self.facts.end_token_ids
        return Ending(
            frozenset((*ends, *asked.stop_token_ids)),
            tuple(asked.stop),
            asked.keeps_stop,
            asked.skip_special_tokens,
            asked.min_tokens,
        )

    @property
    def options(self) -> dict[str, Any]:
        """How tokens are drawn, as `SamplingParams` has it. `top_k` 0 is vLLM's way to keep every token."""
        asked = self.asked
        return {
            "max_tokens": asked.most_tokens,
            "temperature": asked.temperature,
            "top_k": asked.top_k or -1,
            "top_p": asked.top_p,
            "seed": asked.seed,
            "stop_token_ids": tuple(sorted(self.ending.stop_tokens)),
            "stop_strings": tuple(asked.stop),
            "min_tokens": asked.min_tokens,
        }

    def start(self, samplers: Samplers, listener: Listener | None = None) -> list[str]:
        """Queue it: a request id for each prompt."""
        n = self.asked.n
        return [
            samplers.sample(
                self.target,
                prompt=prompt,
                num_samples=n,
                topk_sample_logprobs=self.asked.likeliest,
                listener=None if listener is None else _numbered(listener, place * n),
                **self.options,
            )
            for place, prompt in enumerate(self.prompts)
        ]


def _numbered(listener: Listener, first: int) -> Callable[[DrawnToken], None]:
    return lambda drawn: listener(first + drawn.index, drawn)


async def chat_job(service: Service, asked: ChatCompletion) -> Job:
    """Raises FieldRefused, UnknownModel or InvalidInput."""
    target, facts, language = await _model(service, asked.model)
    return _checked(Job(asked, target, language, facts, [await asyncio.to_thread(prompt_of, asked, language)]))


async def completion_job(service: Service, asked: Completion) -> Job:
    """Raises what `chat_job` raises."""
    target, facts, language = await _model(service, asked.model)
    if not asked.prompts:
        raise FieldRefused("prompt is empty; give a text or token ids", "prompt")
    prompts = [
        await asyncio.to_thread(language.tokens, prompt) if isinstance(prompt, str) else np.array(prompt, np.int64)
        for prompt in asked.prompts
    ]
    return _checked(Job(asked, target, language, facts, prompts))


async def _model(service: Service, name: str) -> tuple[Target, ModelFacts, Language]:
    target = target_of(service, name)
    facts = service.base_model(target.base_model)
    return target, facts, await asyncio.to_thread(language_of, facts)


def _checked(job: Job) -> Job:
    """The door's own checks, before there is a session for what it would refuse."""
    asked, facts = job.asked, job.facts
    for prompt in job.prompts:
        _check_room(job, len(prompt))
        door.check_prompt(prompt, facts)
        most = door.effective_max_tokens(asked.most_tokens, len(prompt), facts)
        if asked.min_tokens > most:
            told = f"min_tokens is {asked.min_tokens}, more than max_tokens, {most}; lower it"
            raise FieldRefused(told, "min_tokens")
        params = SamplingParams(**{**job.options, "max_tokens": most})
        door.check_sampling_params(params, facts)
        door.check_sampling(SampleRequest(prompt, asked.n, params, topk_sample_logprobs=asked.likeliest), facts)
    return job


def _check_room(job: Job, length: int) -> None:
    """`max_tokens` in the words of this protocol."""
    most, context = job.asked.most_tokens, job.facts.context_length
    if length + (most or 1) > context:
        raise FieldRefused(
            f"the prompt has {length} tokens, and with max_tokens {most or 1} more they exceed the context of "
            f"{job.facts.name!r}, {context}; shorten the prompt or lower max_tokens",
            "max_tokens" if length < context else "messages" if isinstance(job.asked, ChatCompletion) else "prompt",
        )
