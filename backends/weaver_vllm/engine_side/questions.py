"""What a request asks about its prompt's tokens, answered while the prompt goes through the model.

Only answers leave this process; the distributions they come from are computed a chunk of positions at a time.

Shapes: n tokens of the prompt, m = n - 1 positions after the first, C positions of one chunk, V vocabulary, H hidden
size, k likeliest tokens or draws, c cells of a table.
"""

from typing import Any, Final, Protocol

import numpy as np
import torch

CHUNK_ELEMENTS: Final = {"cpu": 1 << 23}
OTHER_CHUNK_ELEMENTS: Final = 1 << 27
ALTERNATIVES_STREAM: Final = 2**32 - 1
"""Of a seed: a stream of numbers that belongs to no sample."""


class _Question(Protocol):
    wanted_n: np.ndarray

    def add(self, positions_C: np.ndarray, logprobs_CV: torch.Tensor) -> None:
        """Take in the distributions at some of the wanted positions."""

    def answers(self) -> dict[str, Any]:
        """What is sent back."""


class Questions:
    """All that one request asks. `asked` is the request's message; nothing predicts the first token."""

    def __init__(self, asked: dict[str, Any]) -> None:
        length = len(asked["prompt"])
        self._questions: list[_Question] = []
        if asked["prompt_logprobs"] or asked["topk_prompt_logprobs"]:
            self._questions.append(OwnLogprobs(asked))
        if asked["targets"] is not None:
            self._questions.append(Targets(asked["targets"], length))
        if asked["alternatives"]:
            self._questions.append(Alternatives(asked, length))
        self.wanted_n = np.zeros(length, bool)
        for question in self._questions:
            self.wanted_n |= question.wanted_n

    def __bool__(self) -> bool:
        return bool(self._questions)

    def wanted(self, start: int, count: int) -> np.ndarray:
        """Of the tokens from `start` on, the places of those that predict a token that is asked about."""
        return np.flatnonzero(self.wanted_n[start + 1 : start + 1 + count])

    def add(self, positions_C: np.ndarray, logits_CV: torch.Tensor) -> None:
        logprobs_CV = logits_CV.log_softmax(1, dtype=torch.float32)
        for question in self._questions:
            chosen_C = np.flatnonzero(question.wanted_n[positions_C])
            if len(chosen_C):
                question.add(positions_C[chosen_C], logprobs_CV[torch.from_numpy(chosen_C).to(logprobs_CV.device)])

    def answers(self) -> dict[str, Any]:
        return {name: answer for question in self._questions for name, answer in question.answers().items()}


class OwnLogprobs:
    """The logprobs of the prompt's own tokens, and the likeliest tokens beside them."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._prompt_n, self._topk = asked["prompt"], asked["topk_prompt_logprobs"]
        length, last_n = len(self._prompt_n), asked["prompt_logprobs_last_n"]
        self._temperature = asked["prompt_temperature"]
        self.wanted_n = np.arange(length) >= (1 if last_n is None else length - last_n)
        self._logprobs_n = np.full(length, np.nan, np.float32)
        self._top_tokens_nk = np.zeros((length, self._topk), np.int32)
        self._top_logprobs_nk = np.full((length, self._topk), np.nan, np.float32)

    def add(self, positions_C: np.ndarray, logprobs_CV: torch.Tensor) -> None:
        target_C1 = torch.from_numpy(self._prompt_n[positions_C])[:, None].to(logprobs_CV.device)
        if self._temperature != 1:
            logprobs_CV = (logprobs_CV / self._temperature).log_softmax(1)  # a constant on the logits changes nothing
        self._logprobs_n[positions_C] = logprobs_CV.gather(1, target_C1)[:, 0].cpu().numpy()
        if self._topk:
            top = logprobs_CV.topk(self._topk, dim=1)
            self._top_tokens_nk[positions_C] = top.indices.cpu().numpy()
            self._top_logprobs_nk[positions_C] = top.values.cpu().numpy()

    def answers(self) -> dict[str, Any]:
        return {
            "prompt_logprobs": self._logprobs_n,
            "prompt_top_tokens": self._top_tokens_nk,
            "prompt_top_logprobs": self._top_logprobs_nk,
        }


class Targets:
    """The logprobs of given tokens at given positions; 0 where a cell asks for nothing."""

    def __init__(self, targets: dict[str, Any], length: int) -> None:
        tokens_c = targets["tokens"]
        self._logprobs_c = np.zeros(len(tokens_c), np.float32)
        self._cells = np.flatnonzero(tokens_c >= 0)
        self._rows, self._tokens = targets["rows"][self._cells], tokens_c[self._cells]  # rows ascend
        self.wanted_n = np.zeros(length, bool)
        self.wanted_n[self._rows + 1] = True

    def add(self, positions_C: np.ndarray, logprobs_CV: torch.Tensor) -> None:
        first, last = np.searchsorted(self._rows, [positions_C[0] - 1, positions_C[-1]])
        place = np.searchsorted(positions_C, self._rows[first:last] + 1)
        row, token = (torch.from_numpy(each).to(logprobs_CV.device) for each in (place, self._tokens[first:last]))
        self._logprobs_c[self._cells[first:last]] = logprobs_CV[row, token].cpu().numpy()

    def answers(self) -> dict[str, Any]:
        return {"target_logprobs": self._logprobs_c}


class Alternatives:
    """Tokens drawn at every position. The same seed draws the same ones, in whatever pieces the prompt comes."""

    def __init__(self, asked: dict[str, Any], length: int) -> None:
        k, params = asked["alternatives"], asked["params"]
        self._temperature = params["temperature"]
        sequence = np.random.SeedSequence(params["seed"], spawn_key=(ALTERNATIVES_STREAM, 0))
        self._uniform_mk = np.random.Generator(np.random.Philox(sequence)).random((length - 1, k))
        self.wanted_n = np.arange(length) > 0
        self._tokens_mk = np.zeros((length - 1, k), np.int64)
        self._logprobs_mk = np.zeros((length - 1, k), np.float32)

    def add(self, positions_C: np.ndarray, logprobs_CV: torch.Tensor) -> None:
        uniform_Ck = torch.from_numpy(self._uniform_mk[positions_C - 1]).to(logprobs_CV.device)
        token_Ck = _draw(logprobs_CV, self._temperature, uniform_Ck)
        self._tokens_mk[positions_C - 1] = token_Ck.cpu().numpy()
        self._logprobs_mk[positions_C - 1] = logprobs_CV.gather(1, token_Ck).cpu().numpy()

    def answers(self) -> dict[str, Any]:
        return {"alternative_tokens": self._tokens_mk, "alternative_logprobs": self._logprobs_mk}


def _draw(logprobs_CV: torch.Tensor, temperature: float, uniform_Ck: torch.Tensor) -> torch.Tensor:
    """The tokens (C, k) at which the cumulative distribution at that temperature passes the uniform numbers."""
    if temperature == 0:
        return logprobs_CV.argmax(1, keepdim=True).expand(uniform_Ck.shape)
    scaled_CV = (logprobs_CV - logprobs_CV.amax(1, keepdim=True)) / temperature
    cumulative_CV = scaled_CV.exp_().cumsum(1, dtype=torch.float64)
    token_Ck = torch.searchsorted(cumulative_CV, uniform_Ck * cumulative_CV[:, -1:], right=True)
    return token_Ck.clamp_(max=logprobs_CV.shape[1] - 1)


def chunk_of(device: str, vocabulary_size: int) -> int:
    """How many positions are computed at once."""
    return max(1, CHUNK_ELEMENTS.get(device, OTHER_CHUNK_ELEMENTS) // vocabulary_size)
