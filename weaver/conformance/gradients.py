"""What a pass adds to a model's gradients, seen in where a plain step takes the logprobs.

A plain step is the gradient times a rate, so twice the gradient at half the rate must lead to the same place.
"""

import numpy as np
import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import PROBES, A, B, Lab, forward, run, submitted, waited
from weaver.conformance.recipes import Array, Example, Pass, Step, passes, plain

GROUP = "gradient semantics"


def _on_a(lab: Lab) -> Array:
    """Where one pass over A and a plain step lead."""
    return lab.after(passes(A), plain(lab.rate))


def weights_scale_the_gradient(lab: Lab) -> None:
    """Weights are factors; divided by their own sum or by a count of tokens they would not be."""
    double = lab.after(passes(A.weighted(2)), plain(lab.rate / 2))
    lab.same(double, _on_a(lab), "weights 2 w at half the rate, against w")
    half = lab.after(passes(A.weighted(0.25)), plain(lab.rate * 4))
    lab.same(half, _on_a(lab), "weights w / 4 at four times the rate, against w")


def every_weight_counts_for_its_own_token(lab: Lab) -> None:
    """Prompts are masked with zeros and tokens rewarded unequally; a weight must act where it stands."""
    cut = 4
    mask = (np.arange(len(A.tokens)) < cut).astype(np.float64)
    parts = (A.weighted(mask), A.weighted(1 - mask))
    together = lab.after(passes(parts[0]), passes(parts[1]), plain(lab.rate))
    lab.same(together, _on_a(lab), "the two halves of a datum's weights, against all of them")
    short = Example(A.tokens[:cut], A.targets[:cut], ()).reading(weights=A.weights[:cut])
    expected = lab.after(passes(short), plain(lab.rate))
    masked = lab.after(passes(parts[0]), plain(lab.rate))
    lab.same(masked, expected, f"a text whose weights are zero from its token {cut} on, against the text cut there")


def negative_weights_push_away(lab: Lab) -> None:
    """Custom losses and negative advantages arrive as weights below zero, and must not be clamped or masked."""
    mixed = lab.after(passes(A.weighted(2)), passes(A.weighted(-1)), plain(lab.rate))
    lab.same(mixed, _on_a(lab), "weights 2 w and -w, against w")
    part = slice(0, len(A.tokens))
    away = lab.after(passes(A.weighted(-1)), plain(lab.rate))[part]
    lower, higher = float((A.weights * away).sum()), float((A.weights * lab.start[part]).sum())
    require(lower < higher, f"a step on weights below zero raised the text's logprob from {higher:.4g} to {lower:.4g}")


def zero_weights_add_nothing(lab: Lab) -> None:
    """What is masked out must not train."""
    lab.same(lab.after(passes(A), passes(B.weighted(0)), plain(lab.rate)), _on_a(lab), "a pass with weights of zero")


def passes_accumulate(lab: Lab) -> None:
    """Large batches are given in several passes; their sum must be one pass over everything."""
    whole = lab.after(passes(A, B), plain(lab.rate))
    lab.same(lab.after(passes(A), passes(B), plain(lab.rate)), whole, "two passes, against one over both data")
    lab.differ(lab.after(passes(B), plain(lab.rate)), whole, "the second pass alone, against both")


def a_datum_given_twice_counts_twice(lab: Lab) -> None:
    """Repeating data is how they are weighted by hand; batch averages and caches would undo it."""
    lab.same(lab.after(passes(A, A), plain(lab.rate / 2)), _on_a(lab), "a datum twice at half the rate, against once")


def the_gradient_is_the_losss_own(lab: Lab) -> None:
    """A constant factor on every gradient would shift all learning rates and break clipping."""
    small = lab.small_rate
    free = lab.slope(plain(small))
    norm = (free / small) ** 0.5
    clipped = lab.slope(Step(plain(small).learning_rate, grad_clip_norm=norm / 2))
    # Along a gradient g' = g / N a plain step gains rate |g|^2 / N, and one clipped to c gains rate c |g|.
    factor = (clipped / (small * norm / 2)) ** 2 / (free / small)
    require(0.9 <= factor <= 1.1, f"the gradient is 1 / {factor:.3g} of the gradient of loss:sum")


def a_forward_leaves_no_gradient(lab: Lab) -> None:
    """Evaluating between passes must not train on the evaluation data."""
    found = lab.after(passes(A), Pass((B,), backward=False), plain(lab.rate))
    lab.same(found, _on_a(lab), "a forward between a pass and its step")


def a_step_uses_up_the_gradients(lab: Lab) -> None:
    """Gradients that stay would be applied again by every later step."""
    found = lab.after(passes(B), Step(0.0), passes(A), plain(lab.rate))
    lab.same(found, _on_a(lab), "a pass and a step after another pass and a step at rate zero")


def a_failed_pass_leaves_no_gradient(lab: Lab) -> None:
    """A batch with one bad datum is refused whole; half of its gradients would train on nobody knows what."""
    bad = Example(B.tokens, B.targets, (("weights", (float("nan"),) * len(B.tokens)),))
    with lab.session() as session:
        model = session.model()
        try:
            waited(submitted(model, passes(B, bad)))
        except tinker.TinkerError as error:
            refused = str(error)
        else:
            refused = ""
        run(model, [passes(A), plain(lab.rate)])
        found = np.concatenate(forward(model, PROBES))
    require(bool(refused), "a pass with a weight of NaN succeeded")
    lab.same(found, _on_a(lab), "a pass and a step after a pass that failed")


def several_targets_per_token_add_up(lab: Lab) -> None:
    """Distillation gives several targets per token; their gradients must be those of one target at a time."""
    other = Example(A.tokens, A.tokens, A.inputs)
    rows = zip(A.targets, other.targets, strict=True)
    weights = tuple((float(weight), float(weight)) for weight in A.weights)
    both = Example(A.tokens, tuple(rows), (("weights", weights),))  # type: ignore[arg-type]
    expected = lab.after(passes(A, other), plain(lab.rate))
    lab.same(lab.after(passes(both), plain(lab.rate)), expected, "two targets per token, against two data")


def data_do_not_see_each_other(lab: Lab) -> None:
    """Servers pack and pad; a datum's logprobs must be those it has alone."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A, B), plain(lab.rate)])
        alone = [forward(model, [probe])[0] for probe in PROBES]
        together = forward(model, [*PROBES, A, B])
    for index, (one, other) in enumerate(zip(alone, together)):
        lab.agree(other, one, f"datum {index} in a batch, against alone", allowed=0.02)


CHECKS = (
    weights_scale_the_gradient,
    every_weight_counts_for_its_own_token,
    negative_weights_push_away,
    zero_weights_add_nothing,
    passes_accumulate,
    a_datum_given_twice_counts_twice,
    the_gradient_is_the_losss_own,
    a_forward_leaves_no_gradient,
    a_step_uses_up_the_gradients,
    a_failed_pass_leaves_no_gradient,
    several_targets_per_token_add_up,
    data_do_not_see_each_other,
)
