"""`check_sampler`: the contract `weaver.sampler.Sampler` as checks against transformers and peft.

Shapes: n tokens of a prompt, V vocabulary, k likeliest tokens.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from weaver.domain import (
    AdapterRef,
    DrawnToken,
    Inflight,
    OptionValue,
    PromptTargets,
    SampledSequence,
    StopReason,
)
from weaver.errors import Stopped
from weaver.sampler import SamplerFactory
from weaver.testing.left_tokens import (
    masks_are_what_tokens_were_drawn_among_or_refused,
    stop_tokens_wait_for_min_tokens_or_it_is_refused,
)
from weaver.testing.reference import END_TOKEN, FAMILIES, VOCABULARY, distribution
from weaver.testing.sampler_bench import DRAWN, GREEDY, SECONDS, Bench, bench_of, drawn_or_refused, near, token_lists

DRAWS: Final = 400


def greedy_is_the_likeliest_token(bench: Bench) -> None:
    requests = [
        replace(bench.ask(), prompt_n=bench.prompt(seed, length)) for seed, length in enumerate((9, 1, 40, 100))
    ]
    for request, result in zip(requests, bench.draw(*requests), strict=True):
        expected = bench.base.greedy(request.prompt_n, 12)
        assert token_lists(result) == [expected], f"greedy, it says {token_lists(result)}; the likeliest are {expected}"
        assert result.sequences[0].stop_reason is StopReason.LENGTH, "it does not say that it stopped for the length"
        bench.check_logprobs(request, result, bench.base)


def drawn_tokens_have_the_logprobs_they_were_drawn_with(bench: Bench) -> None:
    for changed in (
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8},
    ):
        request = bench.ask(1, replace(DRAWN, **changed), samples=4)
        [result] = bench.draw(request)
        bench.check_logprobs(request, result, bench.base)


def draws_follow_the_distribution(bench: Bench) -> None:
    """Of each token that should come often enough, the count within five deviations; of each cut off, none."""
    for changed in ({"temperature": 0.5}, {"temperature": 0.8, "top_k": 4}, {"top_p": 0.6}):
        params = replace(DRAWN, max_tokens=1, **changed)  # type: ignore[arg-type]
        [result] = bench.draw(bench.ask(2, params, samples=DRAWS))
        wanted_V = distribution(bench.base.logits(bench.prompt(2))[-1], params).numpy()
        counts_V = np.bincount([sequence.tokens[0] for sequence in result.sequences], minlength=VOCABULARY)
        assert len(result.sequences) == DRAWS, f"{len(result.sequences)} samples came; {DRAWS} were asked for"
        assert not counts_V[wanted_V == 0].any(), f"{params}: tokens were drawn that top_k or top_p leave out"
        deviation_V = np.sqrt(DRAWS * wanted_V * (1 - wanted_V))
        off_V = np.abs(counts_V - DRAWS * wanted_V) > 5 * deviation_V + 1
        assert not off_V.any(), (
            f"{params}: token {int(off_V.argmax())} came {counts_V[off_V.argmax()]} times of {DRAWS}"
        )


def a_seed_draws_the_same_again(bench: Bench) -> None:
    request = bench.ask(3, DRAWN, samples=3)
    [alone] = bench.draw(request)
    others = [bench.ask(seed, replace(DRAWN, seed=seed), samples=2) for seed in range(5, 11)]
    [among, *_] = bench.draw(request, *others)
    assert token_lists(alone) == token_lists(among), "the same seed draws other tokens when other requests run"
    assert len({tuple(one) for one in token_lists(alone)}) == 3, "the samples of one request are the same"
    [other] = bench.draw(replace(request, params=replace(DRAWN, seed=8)))
    assert token_lists(other) != token_lists(alone), "another seed draws the same tokens"
    [first], [second] = (token_lists(one) for one in bench.draw(*[bench.ask(3, replace(DRAWN, seed=None))] * 2))
    assert first != second, "without a seed the same tokens are drawn again"


def it_stops_where_it_should(bench: Bench) -> None:
    likeliest = bench.base.greedy(bench.prompt(4), 12)
    stop = likeliest[5]
    first = likeliest.index(stop) + 1
    [result] = bench.draw(bench.ask(4, replace(GREEDY, stop_token_ids=(stop,))))
    [sequence] = result.sequences
    assert sequence.tokens.tolist() == likeliest[:first], f"{sequence.tokens}: a stop token is the last that comes"
    assert sequence.stop_reason is StopReason.STOP, "it does not say that it stopped at a stop token"
    assert len(sequence.logprobs) == first, "there is not one logprob for each token"
    params = replace(DRAWN, max_tokens=60, temperature=3.0, stop_token_ids=None)
    [result] = bench.draw(bench.ask(4, params, samples=16))
    for sequence in result.sequences:
        *before, last = sequence.tokens.tolist()
        assert END_TOKEN not in before, "without stop_token_ids it goes on after the model's own end token"
        ended = sequence.stop_reason is StopReason.STOP
        assert ended == (last == END_TOKEN), f"it says {sequence.stop_reason} of one that ends with {last}"
        assert ended or len(before) == 59, "a sequence ends before max_tokens, and not at a stop token"


def a_listener_hears_what_the_result_says(bench: Bench) -> None:
    """Or nothing, from a sampler that cannot tell."""
    heard: list[DrawnToken] = []
    [result] = bench.draw(bench.ask(5, DRAWN, samples=3, topk_sample_logprobs=2, listener=heard.append))
    for index, sequence in enumerate(result.sequences if heard else ()):
        told, top = [one for one in heard if one.index == index], sequence.top_logprobs
        tokens = [one.token for one in told]
        assert tokens == sequence.tokens.tolist(), f"a listener hears {tokens}; the result has {sequence.tokens}"
        off = np.abs(np.array([one.logprob for one in told], np.float32) - sequence.logprobs).max()
        assert off <= 1e-6, f"a listener hears logprobs that are off by {off:.1e} from the result's"
        assert top is not None, "topk_sample_logprobs is not answered"
        likeliest = [[token for token, _ in one.likeliest] for one in told]
        assert likeliest == top.token_ids_nk.tolist(), "a listener hears of other likeliest tokens than the result has"


def prompts_are_scored(bench: Bench) -> None:
    request = bench.ask(5, prompt_logprobs=True, topk_prompt_logprobs=3, topk_sample_logprobs=2)
    [result] = bench.draw(request)
    logprobs_nV = bench.base.logits(request.prompt_n).log_softmax(1).numpy()
    expected = logprobs_nV[:-1][np.arange(8), request.prompt_n[1:]]
    assert result.prompt_logprobs_n is not None, "prompt_logprobs were asked for and did not come"
    assert np.isnan(result.prompt_logprobs_n[0]), "the first token of a prompt has a logprob; nothing predicts it"
    near(bench, result.prompt_logprobs_n[1:], expected, "prompt_logprobs")
    top = result.topk_prompt_logprobs
    assert top is not None, "topk_prompt_logprobs were asked for and did not come"
    near(bench, top.logprobs_nk[1:], -np.sort(-logprobs_nV[:-1], axis=1)[:, :3], "topk_prompt_logprobs")
    near(bench, top.logprobs_nk[1:], np.take_along_axis(logprobs_nV[:-1], top.token_ids_nk[1:], 1), "their tokens")
    _check_top(bench, result.sequences[0])
    [last] = bench.draw(replace(request, prompt_logprobs_last_n=2))
    assert last.prompt_logprobs_n is not None
    assert np.isnan(last.prompt_logprobs_n[:-2]).all(), "prompt_logprobs_last_n scores more than the last tokens"
    near(bench, last.prompt_logprobs_n[-2:], expected[-2:], "prompt_logprobs with prompt_logprobs_last_n")


def _check_top(bench: Bench, sequence: SampledSequence) -> None:
    assert sequence.top_logprobs is not None, "topk_sample_logprobs were asked for and did not come"
    found = sequence.top_logprobs
    assert found.logprobs_nk.shape == (12, 2), f"topk_sample_logprobs have shape {found.logprobs_nk.shape}, not (12, 2)"
    assert found.token_ids_nk[:, 0].tolist() == sequence.tokens.tolist(), "at temperature 0 the first is the one drawn"
    near(bench, found.logprobs_nk[:, 0], sequence.logprobs, "topk_sample_logprobs")


def targets_of_a_prompt_are_scored_or_refused(bench: Bench) -> None:
    """A sampler that cannot must say so."""
    rows, columns = np.repeat(np.arange(8), 2), np.tile(np.arange(2), 8)
    tokens = np.random.default_rng(6).integers(2, VOCABULARY, 16)
    request = bench.ask(6, prompt_targets=PromptTargets((8, 2), rows, columns, tokens))
    result = drawn_or_refused(bench, request, "target_prompt_logprobs")
    if result is None:
        return
    assert result.target_logprobs is not None, "target_prompt_logprobs were asked for and silently left out"
    logprobs_nV = bench.base.logits(request.prompt_n).log_softmax(1).numpy()
    near(bench, result.target_logprobs.logprobs_c, logprobs_nV[rows, tokens], "target_prompt_logprobs")


def alternatives_are_drawn_or_refused(bench: Bench) -> None:
    request = bench.ask(6, prompt_alternatives=2)
    result = drawn_or_refused(bench, request, "prompt_alt_tokens_k")
    if result is None:
        return
    assert result.prompt_alternatives is not None, "alternatives were asked for and silently left out"
    tokens_mk = result.prompt_alternatives.tokens_mk
    logprobs_nV = bench.base.logits(request.prompt_n).log_softmax(1).numpy()
    assert (tokens_mk == logprobs_nV[:-1].argmax(1)[:, None]).all(), "at temperature 0 alternatives are the likeliest"
    found = result.prompt_alternatives.logprobs_mk
    near(bench, found, np.take_along_axis(logprobs_nV[:-1], tokens_mk, 1), "prompt_alt_tokens")


def adapters_do_not_meet(bench: Bench) -> None:
    """Both adapters and the base model at once, each as alone by peft, and the base model as before afterwards."""
    before = bench.draw(bench.ask(7))
    asked = [(None, bench.base), *bench.adapters.values(), (None, bench.base)]
    requests = [bench.ask(7, adapter=adapter) for adapter, _ in asked]
    results = bench.draw(*requests)
    for request, result, (adapter, reference) in zip(requests, results, asked, strict=True):
        named = "the base model" if adapter is None else f"the adapter {adapter.adapter_id!r}"
        expected = reference.greedy(request.prompt_n, 12)
        assert token_lists(result) == [expected], f"{named} says {token_lists(result)}, by peft {expected}"
        bench.check_logprobs(request, result, reference)
    assert len({str(token_lists(result)) for result in results}) == 3, (
        "the adapters change nothing, so this proves nothing"
    )
    assert token_lists(bench.draw(bench.ask(7))[0]) == token_lists(before[0]), "adapters changed the base model"


def a_forgotten_adapter_can_come_back_and_others_stay(bench: Bench) -> None:
    (one, one_reference), (other, other_reference) = bench.adapters.values()
    bench.draw(bench.ask(8, adapter=one), bench.ask(8, adapter=other))
    running = bench.sampler.sample(bench.ask(8, replace(GREEDY, max_tokens=60), adapter=one))
    bench.sampler.forget(one.adapter_id)
    bench.sampler.forget("never heard of")
    tokens = running.result(SECONDS).sequences[0].tokens.tolist()
    assert tokens == one_reference.greedy(bench.prompt(8), 60), "forget changed a request that runs on the adapter"
    for adapter, reference in ((other, other_reference), (one, one_reference)):
        [result] = bench.draw(bench.ask(8, adapter=adapter))
        assert token_lists(result) == [reference.greedy(bench.prompt(8), 12)], "after forget an adapter is another"


def an_adapter_that_cannot_be_loaded_fails_its_own_request(bench: Bench) -> None:
    missing = AdapterRef("missing", Path("/nonexistent/adapter"))
    wrong, right = bench.sampler.sample(bench.ask(9, adapter=missing)), bench.sampler.sample(bench.ask(9))
    assert wrong.exception(SECONDS) is not None, "an adapter without a folder is sampled as if it were there"
    assert token_lists(right.result(SECONDS)) == [bench.base.greedy(bench.prompt(9), 12)]


def a_cancelled_request_disturbs_nobody(bench: Bench) -> None:
    long = bench.sampler.sample(bench.ask(10, replace(GREEDY, max_tokens=200)))
    beside = bench.sampler.sample(bench.ask(11, replace(GREEDY, max_tokens=30)))
    long.cancel()
    assert token_lists(beside.result(SECONDS)) == [bench.base.greedy(bench.prompt(11), 30)], (
        "cancelling changed another request"
    )
    try:
        finished = long.result(SECONDS)
    except CancelledError:
        return
    assert len(finished.sequences[0].tokens) == 200, "a request that was cancelled too late is cut without a word"


def newer_weights_are_followed(bench: Bench) -> None:
    """A request may begin with newer weights than it names, never with older ones, and others do not notice."""
    (first, _), (second, second_reference) = bench.adapters.values()
    follows = Inflight("session:train:0", 1, "session:sample:0")
    plain, followed = bench.draw(bench.ask(12, adapter=first), bench.ask(12, adapter=first, inflight=follows))
    assert token_lists(plain) == token_lists(followed), (
        "a request that follows a model nothing was published of is another"
    )
    running = bench.sampler.sample(bench.ask(12, replace(GREEDY, max_tokens=100), adapter=first, inflight=follows))
    bench.sampler.publish("session:train:0", 2, second)
    bench.sampler.publish("session:train:0", 1, first)
    assert len(running.result(SECONDS).sequences[0].tokens) == 100, "a request that newer weights reached was cut"
    newer = replace(bench.ask(12, adapter=second, inflight=replace(follows, version=2, session_id="session:sample:1")))
    [result] = bench.draw(newer)
    assert token_lists(result) == [second_reference.greedy(bench.prompt(12), 12)], (
        "an older version took over a newer one"
    )
    assert token_lists(bench.draw(bench.ask(12, adapter=first))[0]) == token_lists(plain), "publish changed a snapshot"


CHECKS: Final[Mapping[str, Callable[[Bench], None]]] = {
    check.__name__: check
    for check in (
        greedy_is_the_likeliest_token,
        drawn_tokens_have_the_logprobs_they_were_drawn_with,
        draws_follow_the_distribution,
        a_seed_draws_the_same_again,
        it_stops_where_it_should,
        stop_tokens_wait_for_min_tokens_or_it_is_refused,
        masks_are_what_tokens_were_drawn_among_or_refused,
        a_listener_hears_what_the_result_says,
        prompts_are_scored,
        targets_of_a_prompt_are_scored_or_refused,
        alternatives_are_drawn_or_refused,
        adapters_do_not_meet,
        a_forgotten_adapter_can_come_back_and_others_stay,
        an_adapter_that_cannot_be_loaded_fails_its_own_request,
        a_cancelled_request_disturbs_nobody,
        newer_weights_are_followed,
    )
}


def check_sampler(
    factory: SamplerFactory,
    *,
    families: Iterable[str] = FAMILIES,
    device: str = "cpu",
    dtype: str = "float32",
    tolerance: float = 1e-3,
    only: Collection[str] = (),
    options: Mapping[str, OptionValue] = MappingProxyType({}),
) -> None:
    """Open a sampler with its `options` on tiny random models, and compare what it draws with transformers and peft.

    Every check of `CHECKS`, or those that `only` names, runs on a model of every family; then the sampler is closed
    while it draws. The models have no tokenizer, so stop strings are not checked. Raises AssertionError with a line for
    each promise that is broken. `tolerance` is of logprobs.
    """
    wanted = {name: check for name, check in CHECKS.items() if not only or name in only}
    if unknown := set(only) - CHECKS.keys():
        raise ValueError(f"there are no checks {sorted(unknown)}; there are: {', '.join(CHECKS)}")
    broken = []
    for family in families:
        with bench_of(factory, family, device, dtype, tolerance, options) as bench:
            faults = {name: _fault(bench, check) for name, check in wanted.items()}
            faults["a_closed_sampler_stops"] = _fault(bench, _a_closed_sampler_stops)
        broken += [f"{family}: {name}: {why}" for name, why in faults.items() if why]
    if broken:
        raise AssertionError(f"the sampler {factory.name!r} breaks its contract:\n" + "\n".join(broken))


def _a_closed_sampler_stops(bench: Bench) -> None:
    running = bench.sampler.sample(bench.ask(13, replace(GREEDY, max_tokens=200), samples=8))
    bench.sampler.close()
    error = running.exception(SECONDS)
    assert error is None or isinstance(error, Stopped), f"a request failed with {error!r} when the sampler closed"


def _fault(bench: Bench, check: Callable[[Bench], None]) -> str | None:
    try:
        check(bench)
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except Exception as error:  # noqa: BLE001 -- a sampler may raise anything; the other checks still run
        return f"{type(error).__name__}: {error}"
    return None
