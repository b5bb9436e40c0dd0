"""The policy losses, against cross-entropy with the weights that their gradients amount to.

With q as the logprobs that come with the data and A the advantages, d loss / d lp of a policy loss is a number per
token that follows from the server's own lp. Cross-entropy with minus that number as weights has the same gradient.
"""

import numpy as np

from weaver.conformance.checks import require
from weaver.conformance.lab import A, Lab, forward, logprobs_of, run
from weaver.conformance.recipes import Array, Pass, passes, plain

GROUP = "gradient semantics"

LN_2 = float(np.log(2.0))


def _policy(lab: Lab, loss: str, ratio: float, **config: float) -> Array:
    """Where a pass with `loss` leads when every token's ratio exp(lp - q) is the given one and A's weights are the
    advantages."""
    lp = lab.start[: len(A.tokens)]
    example = A.reading(logprobs=lp - np.log(ratio), advantages=A.weights)
    return lab.after(Pass((example,), loss, tuple(config.items())), plain(lab.rate))


def _cross_entropy(lab: Lab, factor: float) -> Array:
    return lab.after(passes(A.weighted(factor)), plain(lab.rate))


def policy_losses_on_policy_are_cross_entropy(lab: Lab) -> None:
    """On fresh samples every ratio is one, and the policy gradient is advantage times the gradient of the logprob."""
    expected = _cross_entropy(lab, 1.0)
    for loss in ("importance_sampling", "ppo", "cispo"):
        lab.same(_policy(lab, loss, 1.0), expected, f"{loss} where lp = q, against cross-entropy")


def importance_sampling_weighs_by_the_ratio(lab: Lab) -> None:
    """Off-policy tokens count by how much likelier the model makes them now."""
    found = _policy(lab, "importance_sampling", 0.5)
    lab.same(found, _cross_entropy(lab, 0.5), "importance_sampling at ratio 1/2, against half the weights")


def ppo_clips_at_its_thresholds(lab: Lab) -> None:
    """The thresholds are bounds of the ratio (0.8 and 1.2 where nothing is said), and beyond them nothing trains."""
    clipped = _policy(lab, "ppo", 1.5)
    lab.unchanged(clipped, lab.start, "ppo at ratio 1.5, where the gradient is zero")
    wide = _policy(lab, "ppo", 1.5, clip_low_threshold=0.5, clip_high_threshold=2.0)
    lab.same(wide, _cross_entropy(lab, 1.5), "ppo at ratio 1.5 with clip_high_threshold 2, against 1.5 w")
    narrow = _policy(lab, "ppo", 1.1, clip_low_threshold=0.9, clip_high_threshold=1.05)
    lab.unchanged(narrow, lab.start, "ppo at ratio 1.1 with clip_high_threshold 1.05, where the gradient is zero")


def cispo_clips_the_ratio_and_keeps_the_gradient(lab: Lab) -> None:
    """CISPO bounds a token's factor and drops no token."""
    found = _policy(lab, "cispo", 1.5, clip_low_threshold=0.0, clip_high_threshold=1.25)
    lab.same(found, _cross_entropy(lab, 1.25), "cispo at ratio 1.5 with clip_high_threshold 1.25, against 1.25 w")


def dro_pulls_back_to_the_sampler(lab: Lab) -> None:
    """DRO adds beta / 2 (lp - q)^2; without its gradient nothing keeps the policy near the data."""
    lp, beta = lab.start[: len(A.tokens)], 0.5
    example = A.reading(logprobs=lp - LN_2, advantages=A.weights)
    found = lab.after(Pass((example,), "dro", (("beta", beta),)), plain(lab.rate))
    expected = lab.after(passes(A.reading(weights=A.weights - beta * LN_2)), plain(lab.rate))
    lab.same(found, expected, "dro, against cross-entropy with weights A - beta (lp - q)")


def the_value_of_a_loss_is_its_formulas(lab: Lab) -> None:
    """People watch the loss; it must be the one whose gradient they train with."""
    lp = lab.start[: len(A.tokens)]
    with lab.session() as session:
        model = session.model()
        for loss, ratio, expected in (("importance_sampling", 2.0, 2.0), ("ppo", 2.0, 1.2), ("ppo", 1.0, 1.0)):
            example = A.reading(logprobs=lp - np.log(ratio), advantages=A.weights)
            [output] = run(model, [Pass((example,), loss, backward=False)])
            value, right = output.metrics["loss:sum"], -expected * float(A.weights.sum())
            require(
                abs(value - right) <= 0.02 * abs(right) + 4 * lab.noise * abs(right),
                f"loss:sum of {loss} at ratio {ratio:g} is {value:.5g}; by its formula it is {right:.5g}",
            )
            require(len(logprobs_of(output)) == len(forward(model, [A])), f"{loss} returned no logprobs")


CHECKS = (
    policy_losses_on_policy_are_cross_entropy,
    importance_sampling_weighs_by_the_ratio,
    ppo_clips_at_its_thresholds,
    cispo_clips_the_ratio_and_keeps_the_gradient,
    dro_pulls_back_to_the_sampler,
    the_value_of_a_loss_is_its_formulas,
)
