"""Whether the sampler computes what the trainer computes: the logprobs of both, of the same tokens by the same weights.

Reinforcement learning trusts that they agree: a sampler that holds other weights, or rounds otherwise, turns every
importance ratio into noise, and nothing else says so. The trainer computes these logprobs anyway when a sequence is
trained on, so the comparison costs no arithmetic; it needs the sequence to come back before the model's next update,
and both to mean one distribution: at the same temperature, over the same tokens.

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
from weaver.domain import (
    Datum,
    FloatArray,
    ForwardBackwardResult,
    SampledSequence,
    SampleRequest,
    SampleResult,
    TokenRows,
)
from weaver.loss import TARGET_TOKENS

KEPT: Final = 16_384
KEPT_TOKENS: Final = 1 << 23
"""How many sequences, and how many tokens of them, can wait to be trained on."""

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


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What a sampler said of a sequence: logprobs of softmax(logits / temperature), over what the sampling mask names
    whose digest is `mask`."""

    logprobs_D: FloatArray
    temperature: float
    mask: bytes


class MismatchWatch:
    """Told of what is sampled, trained and changed; every method may be called from any thread.

    A `share` of sequences is watched, chosen by what they are: 0 none, 1 all. Past `warning` nats on average over a
    pass, the log says so once, and once more after it was better.
    """

    def __init__(self, share: float, warning: float) -> None:
        self._share, self._warning = share, warning
        self._lock = threading.Lock()
        self._adapters: dict[str, str] = {}  # what has the weights that its model has now: adapter -> model
        self._drawn: OrderedDict[tuple[str, bytes], _Drawn] = OrderedDict()
        self._drawn_tokens = 0
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
                self._forget(*key)

    def forget(self, model_id: str) -> None:
        """The model is gone."""
        self.changed(model_id)
        with self._lock:
            self._found.pop(model_id, None)
            self._bad.discard(model_id)

    def sampled(self, request: SampleRequest, result: SampleResult) -> None:
        """Remember what was drawn by one set of weights where it is known what the logprobs are of."""
        if request.adapter is None or request.inflight is not None:
            return
        with self._lock:
            model_id = self._adapters.get(request.adapter.adapter_id)
            if model_id is None:
                return
            for sequence in result.sequences:
                name = _name(np.concatenate([request.prompt_n, sequence.tokens]))
                if self._is_watched(name) and len(request.prompt_n) and (drawn := _drawn(request, sequence)):
                    self._forget(model_id, name)
                    self._drawn[model_id, name] = drawn
                    self._drawn_tokens += len(drawn.logprobs_D)
            while len(self._drawn) > KEPT or self._drawn_tokens > KEPT_TOKENS:
                self._forget(*next(iter(self._drawn)))

    def trained(self, one: Pass, result: ForwardBackwardResult) -> ForwardBackwardResult:
        """The result of a pass; with what was found in its metrics, where some of its data were drawn and watched."""
        if not self._drawn:
            return result
        pairs = zip(one.data, result.logprobs, strict=True)
        told = [self._difference(one, datum, ours) for datum, ours in pairs]
        differences = [found for found in told if found is not None]
        if not differences:
            return result
        with self._lock:
            self._found[one.model_id] = self._found.get(one.model_id, Mismatch()).plus(differences)
        here = Mismatch().plus(differences)
        self._warn(one.model_id, here)
        return replace(result, metrics={**result.metrics, MEAN: here.mean, MAX: here.maximum})

    def _difference(self, one: Pass, datum: Datum, trained_T: FloatArray) -> FloatArray | None:
        """|trainer - sampler| of the tokens drawn last in a datum; None for one that was not drawn, or not watched, or
        not so."""
        targets = datum.loss_fn_inputs[TARGET_TOKENS]
        if targets.ndim != 1 or not np.array_equal(datum.tokens_T[1:], targets[:-1]):
            return None
        key = one.model_id, _name(np.concatenate([datum.tokens_T[:1], targets]))
        with self._lock:
            drawn = self._drawn.get(key)
            if drawn is None or drawn.temperature != one.temperature:
                return None
            start = len(trained_T) - len(drawn.logprobs_D)
            if drawn.mask != _mask(datum.sampling_mask, start):
                return None
            self._forget(*key)
        return np.abs(trained_T[start:] - drawn.logprobs_D)

    def _forget(self, model_id: str, name: bytes) -> None:
        """Drop what was kept of a sequence, if anything was. The caller has the lock."""
        dropped = self._drawn.pop((model_id, name), None)
        self._drawn_tokens -= 0 if dropped is None else len(dropped.logprobs_D)

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


def _drawn(request: SampleRequest, sequence: SampledSequence) -> _Drawn | None:
    """None where tokens were left out and it is not known which."""
    params = request.params
    is_cut = params.min_tokens > 0 or (params.temperature > 0 and (params.top_k != -1 or params.top_p != 1))
    if is_cut and sequence.sampling_mask is None:
        return None
    return _Drawn(sequence.logprobs, params.temperature or 1.0, _mask(sequence.sampling_mask, 0))


def _mask(mask: TokenRows | None, start: int) -> bytes:
    """A digest of the rows from `start` on, for the rows themselves may be large; empty where all of them are."""
    if mask is None or mask.starts[start] == mask.starts[-1]:
        return b""
    lengths, tokens = np.diff(mask.starts[start:]), mask.tokens_c[mask.starts[start] :]
    return hashlib.blake2b(lengths.astype("<i8").tobytes() + tokens.astype("<i4").tobytes(), digest_size=16).digest()


def _name(tokens_N: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(tokens_N.astype("<i4").tobytes(), digest_size=16).digest()
