"""The losses that Weaver's API adds, each token's term written out, on all logits or the kept ones; and made-up data.

Shapes: T tokens of one datum, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from weaver.domain import Datum, TokenRows
from weaver.plugins.losses import weaver_losses

LOSSES = {loss.name: loss for loss in weaver_losses()}
POLICY = ("logprobs", "advantages")


@dataclass(frozen=True)
class Case:
    """A loss with a config and inputs. `term` is what a token adds to the value; where gradients are stopped,
    `gradient_term` is what has the right one."""

    loss: str
    inputs: tuple
    term: Callable
    config: dict = field(default_factory=dict)
    gradient_term: Callable | None = None

    @property
    def name(self):
        return " ".join([self.loss, *self.inputs, *(f"{key}={value}" for key, value in self.config.items())])

    @property
    def effective(self):
        return LOSSES[self.loss].effective_config(self.config)


@dataclass(frozen=True)
class Token:
    """One token: its logprob and entropy at the temperature, and its numbers."""

    lp: torch.Tensor
    entropy: torch.Tensor
    numbers: dict

    def __getattr__(self, name):
        return self.numbers[name]

    @property
    def ratio(self):
        return torch.exp(self.lp - self.logprobs)


def bounded(number, low, high):
    return min(max(number, low), high)


def clipped(token, low, high):
    """PPO's: of the two products the smaller one."""
    plain, inside = token.ratio * token.advantages, torch.clamp(token.ratio, low, high) * token.advantages
    return -plain if plain < inside else -inside


CASES = [
    Case("cross_entropy", ("weights",), lambda t: -t.lp * t.weights),
    Case("cross_entropy", ("weights",), lambda t: -t.lp * t.weights, {"temperature": 0.7}),
    Case("importance_sampling", POLICY, lambda t: -t.ratio * t.advantages),
    Case("importance_sampling", POLICY, lambda t: -t.ratio * t.advantages - 0.3 * t.entropy, {"entropy_coeff": 0.3}),
    Case(
        "importance_sampling",
        (*POLICY, "loss_mask"),
        lambda t: (-t.ratio * t.advantages - 1e-1 * t.entropy) * t.loss_mask,
        {"entropy_coeff": 1e-1, "temperature": 1.6},
    ),
    Case("importance_sampling", (*POLICY, "loss_mask"), lambda t: -t.ratio * t.advantages * t.loss_mask),
    Case(
        "importance_sampling",
        ("weights", "importance_weights"),
        lambda t: -t.lp * t.importance_weights * t.weights,
        {"temperature": 0.5},
    ),
    Case(
        "importance_sampling",
        ("weights", "importance_weights"),
        lambda t: (-t.lp * bounded(t.importance_weights, -0.4, 0.4) + 0.2 * t.entropy) * t.weights,
        {"clip_ratio": 0.4, "entropy_coeff": -0.2},
    ),
    Case(
        "truncated_importance_sampling",
        (*POLICY, "loss_mask"),
        lambda t: (-bounded(t.ratio.item(), 0, 1.05) * t.advantages - 0.2 * t.entropy) * t.loss_mask,
        {"truncation_bound": 1.05, "entropy_coeff": 0.2},
        lambda t: (-bounded(t.ratio.item(), 0, 1.05) * t.advantages * t.lp - 0.2 * t.entropy) * t.loss_mask,
    ),
    Case(
        "truncated_importance_sampling",
        POLICY,
        lambda t: -bounded(t.ratio.item(), 0, 2) * t.advantages,
        {"temperature": 0.9},
        lambda t: -bounded(t.ratio.item(), 0, 2) * t.advantages * t.lp,
    ),
    Case("ppo_clip", POLICY, lambda t: clipped(t, 0.8, 1.2)),
    Case(
        "ppo_clip",
        (*POLICY, "loss_mask"),
        lambda t: (clipped(t, 0.9, 1.05) - 0.5 * t.entropy) * t.loss_mask,
        {"clip_ratio": 0.1, "clip_ratio_high": 0.05, "entropy_coeff": 0.5, "temperature": 1.3},
    ),
    Case("ppo_clip", POLICY, lambda t: clipped(t, 0.97, 1.1), {"clip_ratio": 0.1, "clip_ratio_low": 0.03}),
    Case("ppo", POLICY, lambda t: clipped(t, 0.8, 1.2), {"temperature": 1.3}),
    Case("forward_logprob", ("weights",), lambda t: -t.lp, {"temperature": 0.7}),
    Case("surrogate", ("surrogate_weights", "weights", "advantages"), lambda t: t.lp * t.surrogate_weights),
    Case("surrogate", ("surrogate_weights",), lambda t: t.lp * t.surrogate_weights, {"temperature": 2.0}),
]


def made_data(case, vocabulary, score, lengths=(9, 1, 14, 5), masked=()):
    """Data of a case, whose sampler was near the model that `score` tells the logprobs of, some within every bound and
    some beyond. Those of the indexes `masked` have sampling masks."""
    generator = np.random.default_rng(3)
    made = []
    for index, length in enumerate(lengths):
        ids = generator.integers(2, vocabulary, length + 1)
        datum = Datum(ids[:-1].copy(), {"target_tokens": ids[1:].copy()})
        if index in masked:
            datum = replace(datum, sampling_mask=made_mask(generator, ids[1:].tolist(), vocabulary))
        numbers = {name: generator.normal(size=length).astype(np.float32) for name in case.inputs}
        if "loss_mask" in numbers:
            numbers["loss_mask"] = (generator.random(length) < 0.7).astype(np.float32)
        if "logprobs" in numbers:
            apart = generator.uniform(-0.35, 0.35, length)
            numbers["logprobs"] = (score(datum, case.config.get("temperature", 1.0)) + apart).astype(np.float32)
        made.append(replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, **numbers}))
    return made


def made_mask(generator, targets, vocabulary):
    """Rows in no order: of the target alone, of some tokens, of most, and of none, which means all."""
    rows = []
    for place, target in enumerate(targets):
        others = np.setdiff1d(np.arange(vocabulary), [target])
        row = [target, *generator.choice(others, (0, 6, vocabulary - 3)[place % 3], replace=False).tolist()]
        rows.append([] if place % 4 == 3 else generator.permutation(row).tolist())
    return TokenRows.of_lists(rows)


def tokens_of(case, datum, logits_TV):
    temperature = case.config.get("temperature", 1.0)
    rows = [[]] * len(datum.tokens_T) if datum.sampling_mask is None else datum.sampling_mask.lists()
    for t, (target, kept) in enumerate(zip(datum.loss_fn_inputs["target_tokens"].tolist(), rows, strict=True)):
        kept = kept or list(range(logits_TV.shape[1]))
        scaled = logits_TV[t].double() / temperature
        logprobs = {token: scaled[token] - scaled[kept].logsumexp(0) for token in kept}
        entropy = -sum(lp.exp() * lp for lp in logprobs.values())
        numbers = {name: float(datum.loss_fn_inputs[name][t]) for name in case.inputs}
        yield Token(logprobs[target], entropy, numbers)


@dataclass
class Expected:
    """Of all data of a case; after `backward` the model's parameters have their gradients."""

    value: float
    logprobs: list
    entropy_sum: float
    entropy_mean: float


def expected(case, data, logits_of):
    """By formula; gradients are accumulated by autograd through whole log-softmaxes where the loss has any."""
    value, entropies, means, logprobs, total = 0.0, 0.0, [], [], torch.zeros((), dtype=torch.float64)
    for datum in data:
        tokens = list(tokens_of(case, datum, logits_of(datum)))
        value += sum(float(torch.as_tensor(case.term(token)).detach()) for token in tokens)
        total = total + sum((case.gradient_term or case.term)(token) for token in tokens)
        logprobs.append(np.array([float(token.lp.detach()) for token in tokens]))
        masks = [token.numbers.get("loss_mask", token.numbers.get("weights", 1.0)) for token in tokens]
        entropies += sum(float(token.entropy.detach()) * mask for token, mask in zip(tokens, masks))
        if sum(masks):
            means.append(sum(float(token.entropy.detach()) * mask for token, mask in zip(tokens, masks)) / sum(masks))
    if not LOSSES[case.loss].forward_only:
        total.backward()
    return Expected(value, logprobs, entropies, float(np.mean(means)))


def check(case, found, wanted, tolerance=1e-4):
    """A result's numbers beside the formula's."""
    for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    names = {"loss:sum"} | ({"entropy:sum", "entropy:mean"} if case.config.get("entropy_coeff") else set())
    assert found.metrics.keys() == names
    np.testing.assert_allclose(found.metrics["loss:sum"], wanted.value, rtol=tolerance, atol=tolerance)
    if "entropy:sum" in names:
        np.testing.assert_allclose(found.metrics["entropy:sum"], wanted.entropy_sum, rtol=tolerance)
        np.testing.assert_allclose(found.metrics["entropy:mean"], wanted.entropy_mean, rtol=tolerance)
