"""The requests that the engine draws for: one row of it for each sample.

Shapes: T drawn tokens, k likeliest tokens.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from vllm import SamplingParams
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from .adapters import Slot
from .errors import Refused
from .opening import Opened
from .questions import Questions
from .stopping import StopStrings
from .worker import ASKED

SMALLEST_TEMPERATURE: Final = 1e-5
"""Below it vLLM draws the likeliest token, and tells other logprobs."""
SENT_TEMPERATURES: Final = (0.01, 2.0)
"""What vLLM takes without changing or refusing it, where it sends parameters on to processes of its own."""


class Params(SamplingParams):
    """What `min_tokens` keeps back is what stops, and nothing else: vLLM would keep the model's own end tokens back
    too where others were asked for."""

    def update_from_generation_config(self, generation_config: dict[str, Any], eos_token_id: int | None = None) -> None:
        """All that stops is among `stop_token_ids`."""


@dataclass(slots=True, eq=False)
class Row:
    """One sample on its way: what has come of it."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[list[int], list[float]]] = field(default_factory=list)

    def add(self, output: CompletionOutput, stop: StopStrings) -> bool:
        """Take in tokens that were drawn. True: the last that counts completes a stop string."""
        found: Any = output.logprobs
        for place, token in enumerate(output.token_ids):
            start, end = found.start_indices[place], found.end_indices[place]
            self.tokens.append(token)
            self.logprobs.append(found.logprobs[start])
            self.top.append((found.token_ids[start + 1 : end], found.logprobs[start + 1 : end]))
            if stop and stop.end(self.tokens):
                return True
        return False

    def message(self, k: int, stopped: bool) -> dict[str, Any]:
        tokens_Tk = np.zeros((len(self.tokens), k), np.int32)
        logprobs_Tk = np.full((len(self.tokens), k), np.nan, np.float32)
        for place, (tokens, logprobs) in enumerate(self.top if k else ()):
            possible = [index for index, logprob in enumerate(logprobs[:k]) if logprob > -np.inf]
            tokens_Tk[place, : len(possible)] = [tokens[index] for index in possible]
            logprobs_Tk[place, : len(possible)] = [logprobs[index] for index in possible]
        return {
            "tokens": np.array(self.tokens, np.int64),
            "logprobs": np.array(self.logprobs, np.float32),
            "stopped": stopped,
            "top_tokens": tokens_Tk,
            "top_logprobs": logprobs_Tk,
        }


class Job:
    """One request. `slot` is its adapter's once it runs."""

    def __init__(self, message: dict[str, Any], opened: Opened, stop: StopStrings) -> None:
        self.message, self.stop = message, stop
        self.number: int = message["id"]
        self.slot: Slot | None = None
        self.rows: dict[str, Row] = {}  # those being drawn
        self.done: dict[str, dict[str, Any]] = {}
        self.cached_tokens = 0
        self.asks = bool(Questions(message))
        given = message["params"]["stop_token_ids"]
        self.stop_tokens = frozenset(opened.end_tokens if given is None else given)
        _check(message, opened)

    @property
    def has_adapter(self) -> bool:
        return self.message["adapter"] is not None

    @property
    def salt(self) -> str | None:
        """Requests with another one share no keys and values with this one."""
        follows = self.message["inflight"]
        version = 0 if self.slot is None else self.slot.version
        return None if follows is None else f"{follows['session_id']} {version}"

    def names(self) -> list[str]:
        return [f"{self.number}.{index}" for index in range(self.message["samples"])]

    def params(self, name: str, index: int, vocabulary_size: int) -> SamplingParams:
        """Of one sample. vLLM would change or refuse some temperatures that it computes well when it is given them
        later."""
        asked = self.message["params"]
        greedy, whole = asked["temperature"] == 0, not 0 < asked["top_k"] < vocabulary_size
        params = Params(
            temperature=0.0 if greedy else 1.0,
            top_p=1.0 if greedy else asked["top_p"],
            top_k=0 if greedy or whole else asked["top_k"],
            seed=None if greedy else _seed(asked["seed"], index),
            max_tokens=asked["max_tokens"],
            min_tokens=asked["min_tokens"],
            ignore_eos=True,
            stop_token_ids=sorted(self.stop_tokens),
            detokenize=False,
            logprobs=self.message["topk_sample_logprobs"],
            flat_logprobs=True,
            output_kind=RequestOutputKind.DELTA if self.stop else RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=True if self.asks and not index else None,
            extra_args={ASKED: name} if self.asks and not index else None,
            skip_clone=True,
        )
        if not greedy:
            params.temperature = asked["temperature"]
        return params

    def result(self, answers: dict[str, Any]) -> dict[str, Any]:
        return {
            "is": "result",
            "id": self.number,
            "sequences": [self.done[name] for name in self.names()],
            "cached": self.cached_tokens,
            **answers,
        }


def _seed(seed: int | None, index: int) -> int | None:
    """Of one sample: the same for the same request, whatever else runs."""
    if seed is None:
        return None
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check(message: dict[str, Any], opened: Opened) -> None:
    params, length = message["params"], len(message["prompt"])
    low, high = (SMALLEST_TEMPERATURE, np.inf) if opened.is_whole else SENT_TEMPERATURES
    if params["temperature"] and not low <= params["temperature"] <= high:
        raise Refused(
            f"sampling_params.temperature is {params['temperature']}; the sampler 'vllm' takes 0 (greedy), or what is "
            f"from {low} to {high}"
        )
    if length + params["max_tokens"] > opened.context_length:
        raise Refused(
            f"the prompt's {length} tokens and sampling_params.max_tokens {params['max_tokens']} are more than the "
            f"{opened.context_length} that the engine was started for; its operator may raise "
            "--vllm-arg max_model_len=N, or kv_cache_memory_bytes=N"
        )
