"""The agent trained through the official `openai` client, without NexAU or NexRL:

    weaver serve --model number-agent=FOLDER        # FOLDER by `python -m weaver_nexau.model FOLDER`
    WEAVER_BASE_URL=http://127.0.0.1:8000 python -m weaver_nexau.train

Each answer of the endpoint says which tokens it was shown and which it drew (`nexrl_train`); these are trained on.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import openai

from weaver import ServiceClient, types
from weaver_nexau.task import ASKED, SYSTEM, TOOL, lookup, question, reward
from weaver_nexau.turns import Trace, Turn, group_advantages, loss_inputs, traces

MOST_TURNS = 3


@dataclass(frozen=True)
class Episode:
    """One run of the agent: what it said, and what that was worth."""

    turns: tuple[Turn, ...]
    answer: str
    reward: float


def run_agent(client: openai.OpenAI, model: str, name: str, *, max_tokens: int = 48, **more: Any) -> Episode:
    """Ask, call what the agent calls, and go on until it calls nothing; `more` goes with every request."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question(name)}]
    turns: list[Turn] = []
    called: list[tuple[str, str]] = []
    while True:
        completion = client.chat.completions.create(
            model=model, messages=messages, tools=[TOOL], max_tokens=max_tokens, **more
        )
        turns.append(Turn.of((completion.model_extra or {})["nexrl_train"]))
        said = completion.choices[0].message
        calls = [
            (call.id, call.function.name, call.function.arguments)
            for call in said.tool_calls or []
            if call.type == "function"
        ]
        called += [(tool, arguments) for _, tool, arguments in calls]
        if not calls or len(turns) == MOST_TURNS:
            answer = said.content or ""
            return Episode(tuple(turns), answer, reward(name, called, answer))
        messages.append(said.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True))
        messages += [
            {"role": "tool", "tool_call_id": call_id, "content": _result(tool, arguments)}
            for call_id, tool, arguments in calls
        ]


def _result(tool: str, arguments: str) -> str:
    """What the tool says; an agent that calls it wrongly is told so."""
    match tool, json.loads(arguments):
        case "lookup", {"name": str(name)}:
            return lookup(name)
    return "error: call lookup with a name"


def datum(trace: Trace, advantage: float) -> types.Datum:
    tokens, inputs = loss_inputs(trace, advantage)
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=dict(inputs))


def data_of(group: Sequence[Episode]) -> list[types.Datum]:
    """Of runs of the agent about the same person. Nothing where all did alike: there is nothing to learn from."""
    advantages = group_advantages([episode.reward for episode in group])
    return [
        datum(trace, advantage)
        for episode, advantage in zip(group, advantages, strict=True)
        if advantage
        for trace in traces(episode.turns)
    ]


def train(
    training: Any, client: openai.OpenAI, *, steps: int, people: int = 4, attempts: int = 8, learning_rate: float = 1e-4
) -> Iterator[float]:
    """GRPO: each step's mean reward, before it is learned from. The agents always run on the newest weights."""
    chosen = Random(0)
    with ThreadPoolExecutor(people * attempts) as pool:
        for step in range(steps):
            weights = training.save_weights_for_sampler(name=f"step-{step:04d}")
            names = [name for name in chosen.sample(ASKED, people) for _ in range(attempts)]
            episodes = list(pool.map(lambda name: run_agent(client, weights, name), names))  # noqa: B023
            groups = [episodes[start : start + attempts] for start in range(0, len(episodes), attempts)]
            data = [one for group in groups for one in data_of(group)]
            if data:
                training.forward_backward(data, "importance_sampling")
                training.optim_step(types.AdamParams(learning_rate=learning_rate, weight_decay=0.0))
            yield sum(episode.reward for episode in episodes) / len(episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--model", default="number-agent", help="as the server calls it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--people", type=int, default=4, help="asked about in a step")
    parser.add_argument("--attempts", type=int, default=8, help="runs of the agent for each of them")
    asked = parser.parse_args()
    url, key = os.environ["WEAVER_BASE_URL"], os.environ.get("WEAVER_API_KEY", "local")
    with (
        ServiceClient(base_url=url, api_key=key) as service,
        openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client,
    ):
        training = service.create_model(base_model=asked.model, lora_config={"rank": 8})
        run = train(training, client, steps=asked.steps, people=asked.people, attempts=asked.attempts)
        for step, mean in enumerate(run):
            print(f"step {step}: mean reward {mean:.3f}", flush=True)


if __name__ == "__main__":
    main()
