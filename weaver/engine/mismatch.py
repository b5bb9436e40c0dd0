"""Whether the sampler computes what the trainer computes: the logprobs of both, of the same tokens by the same weights.

Reinforcement learning trusts that they agree: a sampler that holds other weights, or rounds otherwise, turns every
importance ratio into noise, and nothing else says so. The trainer computes these logprobs anyway when a sequence is
trained on, so the comparison costs no arithmetic; it needs the sequence to come back before the model's next update.

Shapes: N tokens of a prompt and what was drawn after it, D drawn ones.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weaver.backend import Pass
from weaver.domain import Datum, FloatArray, ForwardBackwardResult, SampleRequest, SampleResult
from weaver.loss import TARGET_TOKENS

KEPT: Final = 16_384
"""How many sequences can wait to be trained on."""

MEAN, MAX = "sampler_mismatch:mean", "sampler_mismatch:max"
"""The metrics of a pass: the difference of the logprobs in nats, over the tokens it could be told of."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """|trainer's logprob - sampler's logprob| in nats over what was compared of one model."""

    sequences: int = 0
    tokens: int = 0
    total: float = 0.0
    maximum: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else 0.0

    def plus(self, differences: list[FloatArray]) -> "Mismatch":
        every = np.concatenate(differences).astype(np.float64)
        return Mismatch(
            self.sequences + len(differences),
            self.tokens + len(every),
            self.total + float(every.sum()),
            max(self.maximum, float(every.max())),
        )


class MismatchWatch:
    """Told of what is sampled, trained and changed; every method may be called from any thread.

    A `share` of sequences is watched, chosen by what they are: 0 none, 1 all. Past `warning` nats on average over a
    pass, the log says so once, and once more after it was better.
    """

    def __init__(self, share: float, warning: float) -> None:
        self._share, self._warning = share, warning
        self._lock = threading.Lock()
        self._adapters: dict[str, str] = {}  # what has the weights that its model has now: adapter -> model
        self._drawn: OrderedDict[tuple[str, bytes], FloatArray] = OrderedDict()
        self._found: dict[str, Mismatch] = {}
        self._bad: set[str] = set()

    def of(self, model_id: str) -> Mismatch | None:
        """What was found since the server started, None when nothing could be compared."""
        with self._lock:
            return self._found.get(model_id)

    def saved(self, model_id: str, adapter_id: str) -> None:
        """The adapter has the weights that the model has now."""
        with self._lock:
            self._adapters[adapter_id] = model_id

    def changed(self, model_id: str) -> None:
        """The model's weights are others now; what was drawn by the old ones can be compared no more."""
        with self._lock:
            self._adapters = {adapter: model for adapter, model in self._adapters.items() if model != model_id}
            for key in [key for key in self._drawn if key[0] == model_id]:
                del self._drawn[key]

    def forget(self, model_id: str) -> None:
        """The model is gone."""
        self.changed(model_id)
        with self._lock:
            self._found.pop(model_id, None)
            self._bad.discard(model_id)

    def sampled(self, request: SampleRequest, result: SampleResult) -> None:
        """Remember what was drawn where both sides mean the same logprobs: the model's own, by one set of weights."""
        if request.adapter is None or request.inflight is not None or not _unscaled(request):
            return
        with self._lock:
            model_id = self._adapters.get(request.adapter.adapter_id)
            if model_id is None:
                return
            for sequence in result.sequences:
                name = _name(np.concatenate([request.prompt_n, sequence.tokens]))
                if self._is_watched(name) and len(request.prompt_n):
                    self._drawn[model_id, name] = sequence.logprobs
            while len(self._drawn) > KEPT:
                self._drawn.popitem(last=False)

    def trained(self, one: Pass, result: ForwardBackwardResult) -> ForwardBackwardResult:
        """The result of a pass; with what was found in its metrics, where some of its data were drawn and watched."""
        if not self._drawn or one.temperature != 1.0:
            return result
        pairs = zip(one.data, result.logprobs, strict=True)
        told = [self._difference(one.model_id, datum, ours) for datum, ours in pairs]
        differences = [found for found in told if found is not None]
        if not differences:
            return result
        with self._lock:
            self._found[one.model_id] = self._found.get(one.model_id, Mismatch()).plus(differences)
        here = Mismatch().plus(differences)
        self._warn(one.model_id, here)
        return replace(result, metrics={**result.metrics, MEAN: here.mean, MAX: here.maximum})

    def _difference(self, model_id: str, datum: Datum, trained_T: FloatArray) -> FloatArray | None:
        """|trainer - sampler| of the tokens drawn last in a datum; None for one that was not drawn, or not watched."""
        targets = datum.loss_fn_inputs[TARGET_TOKENS]
        if targets.ndim != 1 or not np.array_equal(datum.tokens_T[1:], targets[:-1]):
            return None
        name = _name(np.concatenate([datum.tokens_T[:1], targets]))
        with self._lock:
            drawn_D = self._drawn.pop((model_id, name), None)
        return None if drawn_D is None else np.abs(trained_T[len(trained_T) - len(drawn_D) :] - drawn_D)

    def _is_watched(self, name: bytes) -> bool:
        return int.from_bytes(name[:4], "big") < self._share * 2**32

    def _warn(self, model_id: str, here: Mismatch) -> None:
        with self._lock:
            is_bad, was_bad = not here.mean <= self._warning, model_id in self._bad
            (self._bad.add if is_bad else self._bad.discard)(model_id)
        if is_bad and not was_bad:
            log.warning(
                "model %s: the sampler's logprobs differ from the trainer's by %.3g nats on average, at most %.3g, "
                "over %d tokens of the same weights. It may hold other weights, or compute in a lower precision; see "
                "'Sampler and trainer' in docs/operations.md",
                model_id,
                here.mean,
                here.maximum,
                here.tokens,
            )


def _unscaled(request: SampleRequest) -> bool:
    """Whether the logprobs of what is drawn are the model's own: nothing scaled, nothing cut off."""
    params = request.params
    return params.temperature == 0 or (params.temperature == 1 and params.top_k == -1 and params.top_p == 1)


def _name(tokens_N: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(tokens_N.astype("<i4").tobytes(), digest_size=16).digest()
