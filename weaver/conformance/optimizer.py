"""AdamW, field by field: each number of a step must do what Loshchilov & Hutter's formula says, and nothing else.

Two tools: a step at rate zero leaves the weights where they are and only feeds the moments; and a step whose eps is
tiny moves every weight by the rate, whatever its gradient's size. m and v are then known, and so is a plain step or a
sign step that must lead to the same place.
"""

from weaver.conformance.lab import A, B, Lab
from weaver.conformance.recipes import LARGE_EPS, Array, Step, passes, plain

GROUP = "optimizer fields"

TINY_EPS = 1e-12
BETA1, BETA2 = 0.25, 0.1


def _trained(lab: Lab) -> Array:
    return lab.after(passes(A), plain(lab.rate))


def a_learning_rate_of_zero_changes_nothing(lab: Lab) -> None:
    """Warm-up begins at zero, and weight decay is multiplied by the rate."""
    still = Step(0.0, beta1=0.3, beta2=0.3, eps=1e-3, weight_decay=10.0, grad_clip_norm=0.1)
    lab.unchanged(lab.after(passes(A), still), lab.start, "a step at learning rate zero")


def the_learning_rate_is_the_steps_own(lab: Lab) -> None:
    """Schedules send another rate with every step."""
    lab.differ(_trained(lab), lab.after(passes(A), plain(lab.rate / 4)), "a rate, against a quarter of it")
    still = lab.after(passes(A), plain(lab.rate), passes(B), Step(0.0))
    lab.same(still, _trained(lab), "a step at rate zero after one at another rate, against the first alone")


def beta1_averages_the_gradients(lab: Lab) -> None:
    """Momentum: a step at rate zero on A must show in the next one as (beta1 g_A + g_B) / (1 + beta1)."""
    rate = plain(lab.rate).learning_rate
    found = lab.after(passes(A), Step(0.0, beta1=BETA1), passes(B), Step(rate, beta1=BETA1))
    expected = lab.after(passes(A.weighted(BETA1), B), plain(lab.rate / (1 + BETA1)))
    lab.same(found, expected, f"beta1 = {BETA1}, against the average written out")


def beta2_averages_the_squares(lab: Lab) -> None:
    """The second moment: gradients 4 g at rate zero, then g, make a step of sqrt((1 + beta2) / (1 + 16 beta2))."""
    first, second = Step(0.0, beta2=BETA2, eps=TINY_EPS), Step(lab.sign_rate, beta2=BETA2, eps=TINY_EPS)
    found = lab.after(passes(A.weighted(4)), first, passes(A), second)
    factor = ((1 + BETA2) / (1 + 16 * BETA2)) ** 0.5
    expected = lab.after(passes(A), Step(lab.sign_rate * factor, eps=TINY_EPS))
    lab.same(found, expected, f"beta2 = {BETA2}, against the step written out")


def moments_are_corrected_for_their_beginning(lab: Lab) -> None:
    """Without bias correction the first steps are far too small, or with betas in the wrong place far too large."""
    rate = plain(lab.rate).learning_rate
    first = lab.after(passes(A), Step(rate, beta1=0.9, beta2=0.95))
    lab.same(first, _trained(lab), "a first step with beta1 = 0.9 and beta2 = 0.95, against one with betas 0")
    sign = lab.after(passes(A), Step(lab.sign_rate, eps=TINY_EPS))
    corrected = lab.after(passes(A), Step(lab.sign_rate, beta1=0.9, beta2=0.95, eps=TINY_EPS))
    lab.same(corrected, sign, "the same with a tiny eps")


def eps_is_added_to_the_root(lab: Lab) -> None:
    """Far above the gradients eps divides them; where it is tiny, the gradient's size does not matter."""
    double = lab.after(passes(A), Step(plain(lab.rate).learning_rate * 2, eps=LARGE_EPS * 2))
    lab.same(double, _trained(lab), "twice eps at twice the rate, against both once")
    lab.differ(
        lab.after(passes(A), Step(plain(lab.rate).learning_rate, eps=LARGE_EPS * 8)), _trained(lab), "eight times eps"
    )
    small = lab.after(passes(A), Step(lab.sign_rate, eps=TINY_EPS))
    large = lab.after(passes(A.weighted(4)), Step(lab.sign_rate, eps=TINY_EPS))
    lab.same(large, small, "four times the gradient where eps is tiny")


def weight_decay_shrinks_by_rate_times_decay(lab: Lab) -> None:
    """Each step leaves 1 - rate * decay of every weight: at rate 1 and decay 1 nothing but the base model."""
    nothing = lab.after(passes(A), plain(lab.rate), Step(1.0, weight_decay=1.0))
    lab.same(nothing, lab.start, "a step at rate 1 with weight_decay 1, against a new model", than=_trained(lab))
    halves = lab.after(passes(A), plain(lab.rate), Step(0.2, weight_decay=1.0), Step(0.2, weight_decay=1.0))
    whole = lab.after(passes(A), plain(lab.rate), Step(0.36, weight_decay=1.0))
    lab.same(halves, whole, "two decays to 0.8, against one to 0.64", than=_trained(lab))
    product = lab.after(passes(A), plain(lab.rate), Step(0.09, weight_decay=4.0))
    lab.same(product, whole, "a quarter of the rate and four times the decay", than=_trained(lab))
    lab.differ(whole, _trained(lab), "a decay to 0.64, against none")


def weight_decay_is_no_gradient(lab: Lab) -> None:
    """In AdamW decay passes the moments by; as part of the gradient it would be divided by sqrt(v) + eps."""
    start = (passes(A), plain(lab.rate))
    large, small = (lab.after(*start, Step(0.36, weight_decay=1.0, eps=eps)) for eps in (LARGE_EPS, 1e-3))
    lab.same(small, large, "a decay with eps 1e-3, against one with eps 1e6", than=_trained(lab))
    clipped = lab.after(*start, Step(0.36, weight_decay=1.0, grad_clip_norm=1e-6))
    lab.same(clipped, large, "a decay with a tiny grad_clip_norm", than=_trained(lab))


def grad_clip_norm_bounds_the_gradient(lab: Lab) -> None:
    """Clipping makes the norm of all gradients together the given one, keeps their direction, and 0 switches it off."""
    rate = plain(lab.rate).learning_rate
    lab.same(lab.after(passes(A), Step(rate, grad_clip_norm=1e9)), _trained(lab), "a bound far above the gradient")
    norm = (lab.slope(plain(lab.small_rate)) / lab.small_rate) ** 0.5
    half = lab.after(passes(A), Step(rate, grad_clip_norm=norm / 2))
    lab.same(half, lab.after(passes(A), plain(lab.rate / 2)), "a bound of half the norm, against half the rate")
    again = lab.after(passes(A.weighted(8)), Step(rate, grad_clip_norm=norm / 2))
    lab.same(again, half, "eight times the gradient under the same bound")


CHECKS = (
    a_learning_rate_of_zero_changes_nothing,
    the_learning_rate_is_the_steps_own,
    beta1_averages_the_gradients,
    beta2_averages_the_squares,
    moments_are_corrected_for_their_beginning,
    eps_is_added_to_the_root,
    weight_decay_shrinks_by_rate_times_decay,
    weight_decay_is_no_gradient,
    grad_clip_norm_bounds_the_gradient,
)
