"""The check of `check_backend` that is about what targets were drawn among."""

from dataclasses import replace

from weaver.backend import Pass
from weaver.testing.bench import ENTROPIC, MIXED, WHOLE_ENTROPIC, Bench, agrees_with_peft


def a_sampling_mask_leaves_what_it_names(bench: Bench) -> None:
    """Logprobs, entropies and gradients of every loss that takes masks, of data with and without them, at temperatures
    too. A backend that does not say `sampling_masks` gets none, for no service sends it any."""
    if not bench.factory.sampling_masks:
        return
    bench.trained("a")
    for loss in bench.losses.values():
        if loss.sampling_masks:
            agrees_with_peft(bench, _masked(bench, bench.one_pass("a", loss)))
    plain = bench.losses["cross_entropy"]
    agrees_with_peft(
        bench,
        _masked(bench, bench.one_pass("a", plain, temperature=0.6), every=2),
        bench.one_pass("a", plain, (12, 7)),
        _masked(bench, bench.one_pass("a", ENTROPIC, (*MIXED, 200), entropy_coeff=1.5, temperature=0.7), every=2),
        _masked(bench, bench.one_pass("a", ENTROPIC, (9, 4), backward=False, entropy_coeff=0.5)),
    )
    agrees_with_peft(bench, _masked(bench, bench.one_pass("a", WHOLE_ENTROPIC, (*MIXED, 200), entropy_coeff=1.0)))


def _masked(bench: Bench, one: Pass, every: int = 1) -> Pass:
    """The pass with a mask on its first datum, and on every second, third, ... after that."""
    data = [bench.making.masked(datum) if n % every == 0 else datum for n, datum in enumerate(one.data)]
    return replace(one, data=data)
