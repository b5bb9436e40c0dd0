"""Logprobs of a prompt's own tokens, gathered piece by piece while the prompt is prefilled.

Shapes: n tokens of the prompt, T tokens of one piece, C of one chunk of it, V vocabulary, H hidden size, k likeliest
tokens.
"""

import numpy as np
import torch

from weaver.types import IntArray, TopLogprobs
from weaver_peft.base_model import BaseModel
from weaver_peft.call import LoraWeights, Segment
from weaver_peft.lora import add_updates
from weaver_peft.products import product

CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}


class PromptLogprobs:
    """Under the model's own, unscaled distribution. Nothing predicts the first token: its row is NaN."""

    def __init__(self, prompt_n: IntArray, topk: int) -> None:
        self._prompt_n = prompt_n
        self.logprobs_n = np.full(len(prompt_n), np.nan, np.float32)
        self._top_nk = np.zeros((len(prompt_n), topk), np.int32)
        self._top_logprobs_nk = np.full((len(prompt_n), topk), np.nan, np.float32)

    def top_logprobs(self) -> TopLogprobs:
        return TopLogprobs(self._top_nk, self._top_logprobs_nk)

    def add(self, base: BaseModel, weights: LoraWeights | None, start: int, hidden_TH: torch.Tensor) -> None:
        """Take in the hidden states of the prompt's tokens from `start` on; each predicts the token after it."""
        size = max(1, CHUNK_ELEMENTS[base.device.type] // base.facts.vocabulary_size)
        for hidden_CH in hidden_TH.split(size):
            logits_CV = output_logits(base, hidden_CH, (Segment(0, len(hidden_CH), weights),))
            self._add_chunk(slice(start + 1, start + 1 + len(hidden_CH)), logits_CV)
            start += len(hidden_CH)

    def _add_chunk(self, predicted: slice, logits_CV: torch.Tensor) -> None:
        normalizer_C1 = logits_CV.logsumexp(1, keepdim=True)
        target_C1 = torch.from_numpy(self._prompt_n[predicted])[:, None].to(logits_CV.device)
        self.logprobs_n[predicted] = (logits_CV.gather(1, target_C1) - normalizer_C1)[:, 0].cpu().numpy()
        if self._top_nk.shape[1]:
            top = logits_CV.topk(self._top_nk.shape[1], dim=1)
            self._top_nk[predicted] = top.indices.cpu().numpy()
            self._top_logprobs_nk[predicted] = (top.values - normalizer_C1).cpu().numpy()


def output_logits(base: BaseModel, hidden_TH: torch.Tensor, segments: tuple[Segment, ...]) -> torch.Tensor:
    """Float32 logits (T, V), with the output layer's update of each segment's adapter."""
    logits_TV = product(hidden_TH, base.head_VH).float()
    return add_updates(logits_TV[None], hidden_TH[None], base.head_name, segments)[0]
