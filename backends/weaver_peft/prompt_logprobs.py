"""What a request asks about its prompt's tokens, gathered piece by piece while the prompt is prefilled.

The output layer is computed for the positions that are asked about and for no others.

Shapes: n tokens of the prompt, m = n - 1 positions after the first, T tokens of one piece, C positions of one chunk of
it, V vocabulary, H hidden size, k likeliest tokens or alternatives, c cells of a table.
"""

from typing import Protocol

import numpy as np
import torch

from weaver.domain import (
    IntArray,
    PromptAlternatives,
    PromptTargets,
    SampleRequest,
    SamplingParams,
    TargetLogprobs,
    TopLogprobs,
)
from weaver_peft.base_model import BaseModel
from weaver_peft.call import LoraWeights, Segment
from weaver_peft.drawing import alternatives_generator, draw_many
from weaver_peft.lora import add_updates
from weaver_peft.products import product

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}


class _Question(Protocol):
    """Something asked about some positions of a prompt."""

    wanted_n: np.ndarray

    def add(self, positions_C: IntArray, logprobs_CV: torch.Tensor) -> None:
        """Take in the distributions at some of the wanted positions."""


class PromptLogprobs:
    """All that one request asks about its prompt. Nothing predicts the first token: it is never asked about."""

    def __init__(self, request: SampleRequest) -> None:
        length = len(request.prompt_n)
        self.own = OwnLogprobs(request) if request.prompt_logprobs or request.topk_prompt_logprobs else None
        self.targets = Targets(request.prompt_targets, length) if request.prompt_targets is not None else None
        k = request.prompt_alternatives
        self.alternatives = Alternatives(request.params, length, k) if k else None
        everything: tuple[_Question | None, ...] = (self.own, self.targets, self.alternatives)
        self._questions = [each for each in everything if each is not None]
        self._wanted_n = np.zeros(length, bool)
        for question in self._questions:
            self._wanted_n |= question.wanted_n

    @property
    def unscored_columns(self) -> int:
        """How many of the prompt's columns come before the first whose hidden state is needed: these may be copied."""
        wanted = np.flatnonzero(self._wanted_n)
        return int(wanted[0]) - 1 if wanted.size else len(self._wanted_n)

    def add(self, base: BaseModel, weights: LoraWeights | None, start: int, hidden_TH: torch.Tensor) -> None:
        """Take in the hidden states of the prompt's tokens from `start` on; each predicts the token after it."""
        wanted = np.flatnonzero(self._wanted_n[start + 1 : start + 1 + len(hidden_TH)])
        size = max(1, CHUNK_ELEMENTS[base.device.type] // base.facts.vocabulary_size)
        for first in range(0, len(wanted), size):
            chosen = wanted[first : first + size]
            hidden_CH = hidden_TH[torch.from_numpy(chosen).to(hidden_TH.device)]
            logits_CV = output_logits(base, hidden_CH, (Segment(0, len(hidden_CH), weights),))
            self._add_chunk(start + 1 + chosen, logits_CV.sub_(logits_CV.logsumexp(1, keepdim=True)))

    def _add_chunk(self, positions_C: IntArray, logprobs_CV: torch.Tensor) -> None:
        for question in self._questions:
            chosen_C = question.wanted_n[positions_C]
            if chosen_C.all():
                question.add(positions_C, logprobs_CV)
            elif chosen_C.any():
                question.add(positions_C[chosen_C], logprobs_CV[torch.from_numpy(chosen_C).to(logprobs_CV.device)])


class OwnLogprobs:
    """The logprobs of the prompt's own tokens, and the likeliest tokens beside them."""

    def __init__(self, request: SampleRequest) -> None:
        length, topk, last_n = len(request.prompt_n), request.topk_prompt_logprobs, request.prompt_logprobs_last_n
        self._prompt_n, self._temperature = request.prompt_n, request.prompt_temperature
        self.wanted_n = np.arange(length) >= (1 if last_n is None else length - last_n)
        self.logprobs_n = np.full(length, np.nan, np.float32)
        self.top = TopLogprobs(np.zeros((length, topk), np.int32), np.full((length, topk), np.nan, np.float32))

    def add(self, positions_C: IntArray, logprobs_CV: torch.Tensor) -> None:
        target_C1 = torch.from_numpy(self._prompt_n[positions_C])[:, None].to(logprobs_CV.device)
        if self._temperature != 1:
            logprobs_CV = (logprobs_CV / self._temperature).log_softmax(1)  # a constant on the logits changes nothing
        self.logprobs_n[positions_C] = logprobs_CV.gather(1, target_C1)[:, 0].cpu().numpy()
        if topk := self.top.logprobs_nk.shape[1]:
            top = logprobs_CV.topk(topk, dim=1)
            self.top.token_ids_nk[positions_C] = top.indices.cpu().numpy()
            self.top.logprobs_nk[positions_C] = top.values.cpu().numpy()


class Targets:
    """The logprobs of given tokens at given positions."""

    def __init__(self, targets: PromptTargets, length: int) -> None:
        self.scored = TargetLogprobs(targets, np.zeros(len(targets.tokens_c), np.float32))
        self._cells = np.flatnonzero(targets.tokens_c >= 0)
        self._rows = targets.rows_c[self._cells]  # ascending: cells are in row order
        self.wanted_n = np.zeros(length, bool)
        self.wanted_n[self._rows + 1] = True

    def add(self, positions_C: IntArray, logprobs_CV: torch.Tensor) -> None:
        first, last = np.searchsorted(self._rows, [positions_C[0] - 1, positions_C[-1]])
        cells = self._cells[first:last]
        place = np.searchsorted(positions_C, self._rows[first:last] + 1)
        row, token = (torch.from_numpy(each) for each in (place, self.scored.targets.tokens_c[cells]))
        found = logprobs_CV[row.to(logprobs_CV.device), token.to(logprobs_CV.device)]
        self.scored.logprobs_c[cells] = found.cpu().numpy()


class Alternatives:
    """Tokens drawn at every position. The same seed draws the same ones, in whatever pieces the prompt comes."""

    def __init__(self, params: SamplingParams, length: int, k: int) -> None:
        self._temperature = params.temperature
        self._uniform_mk = alternatives_generator(params.seed).random((length - 1, k))
        self.wanted_n = np.arange(length) > 0
        self.drawn = PromptAlternatives(np.zeros((length - 1, k), np.int64), np.zeros((length - 1, k), np.float32))

    def add(self, positions_C: IntArray, logprobs_CV: torch.Tensor) -> None:
        uniform_Ck = torch.from_numpy(self._uniform_mk[positions_C - 1]).to(logprobs_CV.device)
        token_Ck = draw_many(logprobs_CV, self._temperature, uniform_Ck)
        self.drawn.tokens_mk[positions_C - 1] = token_Ck.cpu().numpy()
        self.drawn.logprobs_mk[positions_C - 1] = logprobs_CV.gather(1, token_Ck).cpu().numpy()


def output_logits(base: BaseModel, hidden_TH: torch.Tensor, segments: tuple[Segment, ...]) -> torch.Tensor:
    """Float32 logits (T, V), with the output layer's update of each segment's adapter."""
    logits_TV = product(hidden_TH, base.head_VH).float()
    return add_updates(logits_TV[None], hidden_TH[None], base.head_name, segments)[0]
