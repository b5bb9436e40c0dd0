"""How tokens are drawn, and what is told about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tinker

from weaver.conformance.checks import Skipped, require
from weaver.conformance.lab import A, B, Lab, forward, run, scores, snapshot, waited
from weaver.conformance.recipes import Example, passes, plain

GROUP = "sampling"

PROMPT = A.tokens
LENGTH = 10


def draw(
    sampler: tinker.SamplingClient, prompt: Sequence[int] = PROMPT, number: int = 1, **params: Any
) -> list[tinker.SampledSequence]:
    """Samples without a stop, unless `params` say otherwise."""
    asked = tinker.SamplingParams(**{"max_tokens": LENGTH, "stop": [], **params})
    return list(waited(sampler.sample(tinker.ModelInput.from_ints(list(prompt)), number, asked)).sequences)


def _tokens(sequences: Sequence[tinker.SampledSequence]) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in sequences]


def max_tokens_is_the_length(lab: Lab) -> None:
    """With `stop=[]` nothing ends a sample but its length, and every token has a logprob."""
    with lab.session() as session:
        for length in (1, LENGTH):
            [one] = draw(session.sampler(), max_tokens=length)
            counts = (len(one.tokens), len(one.logprobs or []), one.stop_reason)
            require(
                counts == (length, length, "length"), f"max_tokens={length} gave {counts}: tokens, logprobs, reason"
            )


def as_many_samples_as_asked(lab: Lab) -> None:
    """Group methods compare samples of one prompt; copies of one sample would have no advantage."""
    with lab.session() as session:
        drawn = draw(session.sampler(), number=4)
    require(len(drawn) == 4, f"num_samples=4 gave {len(drawn)} sequences")
    require(len({tuple(one) for one in _tokens(drawn)}) > 1, "four samples of ten tokens are all the same")


def sampled_logprobs_are_the_trainers(lab: Lab) -> None:
    """Importance ratios divide the trainer's probability by the sampler's; a mismatch is a bias in every update."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        drawn = draw(snapshot(model), number=3, temperature=1.0)
        texts = [[*PROMPT, *one.tokens] for one in drawn]
        data = [Example(tuple(t[:-1]), tuple(t[1:]), (("weights", (1.0,) * (len(t) - 1)),)) for t in texts]
        trained = [lp[len(PROMPT) - 1 :] for lp in forward(model, data)]
    sampled = np.concatenate([np.array(one.logprobs, float) for one in drawn])
    lab.agree(sampled, np.concatenate(trained), "logprobs of sampled tokens, against the trainer's forward")


def draws_follow_the_probabilities(lab: Lab) -> None:
    """A sampler that draws from another distribution than it reports teaches the wrong policy."""
    count = 200
    with lab.session() as session:
        sampler = session.sampler()
        drawn = draw(sampler, number=count, max_tokens=1)
        [best] = draw(sampler, max_tokens=1, temperature=0.0)
        probability = float(np.exp(scores(sampler, [*PROMPT, best.tokens[0]])[-1]))  # type: ignore[arg-type]
    share = sum(one.tokens[0] == best.tokens[0] for one in drawn) / count
    spread = 5 * (probability * (1 - probability) / count) ** 0.5 + 0.01
    require(
        abs(share - probability) <= spread,
        f"the likeliest token has probability {probability:.3f} and was drawn in {share:.3f} of {count} samples",
    )


def a_seed_repeats_a_sample(lab: Lab) -> None:
    """A seed makes a sample repeatable whatever else runs, and another seed makes another one."""
    with lab.session() as session:
        sampler = session.sampler()
        first = _tokens(draw(sampler, number=2, seed=5))
        others = [sampler.sample(tinker.ModelInput.from_ints(list(B.tokens)), 1, _params(4)) for _ in range(3)]
        again = _tokens(draw(sampler, number=2, seed=5))
        other = _tokens(draw(sampler, number=2, seed=6))
        for future in others:
            waited(future)
    require(first == again, f"the seed 5 gave {first}, and then {again}")
    require(first != other, f"the seeds 5 and 6 both gave {first}")


def _params(max_tokens: int) -> tinker.SamplingParams:
    return tinker.SamplingParams(max_tokens=max_tokens, stop=[])


def temperature_zero_is_greedy(lab: Lab) -> None:
    """Evaluations compare greedy answers; each token must be the likeliest, and the same every time."""
    with lab.session() as session:
        sampler = session.sampler()
        greedy, again = (_tokens(draw(sampler, temperature=0.0))[0] for _ in range(2))
        found = waited(
            sampler.sample(tinker.ModelInput.from_ints([*PROMPT, *greedy]), 1, _params(1), True, topk_prompt_logprobs=1)
        )
    require(greedy == again, f"two greedy samples differ: {greedy} and {again}")
    best = [row[0][1] for row in found.topk_prompt_logprobs[len(PROMPT) :]]
    mine = found.prompt_logprobs[len(PROMPT) :]
    short = [place for place, (one, top) in enumerate(zip(mine, best, strict=True)) if one < top - 0.02]
    require(not short, f"greedy tokens number {short} are not the likeliest ones")


def top_k_and_top_p_narrow_the_draw(lab: Lab) -> None:
    """With one candidate left, drawing is greedy."""
    with lab.session() as session:
        sampler = session.sampler()
        greedy = _tokens(draw(sampler, temperature=0.0, max_tokens=5))[0]
        for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
            found = _tokens(draw(sampler, temperature=1.0, max_tokens=5, **narrow))[0]
            require(found == greedy, f"{narrow} gave {found}, greedy decoding {greedy}")


def a_stop_token_ends_a_sample(lab: Lab) -> None:
    """Stop ids end turns; a server that takes them for text, or misses one, runs into the next turn."""
    with lab.session() as session:
        sampler = session.sampler()
        [free] = draw(sampler, seed=9)
        stop = free.tokens[4]
        expected = list(free.tokens[: list(free.tokens).index(stop)])
        [stopped] = draw(sampler, seed=9, stop=[stop])
    found = list(stopped.tokens)
    require(
        found in (expected, [*expected, stop]),
        f"stop=[{stop}] gave {found}; without stop it was {list(free.tokens)}",
    )
    require(stopped.stop_reason == "stop", f"a sample that met its stop token has stop_reason {stopped.stop_reason!r}")


def a_stop_string_ends_a_sample(lab: Lab) -> None:
    """Prompts in plain text end at strings, which need not be a token."""
    with lab.session() as session:
        sampler, tokenizer = session.sampler(), _tokenizer(session.model())
        drawn = [draw(sampler, seed=seed)[0] for seed in range(5, 11)]
        readable = [(seed, one, tokenizer.decode(one.tokens[3:5])) for seed, one in zip(range(5, 11), drawn)]
        fitting = [entry for entry in readable if entry[2].strip() and "\ufffd" not in entry[2]]
        if not fitting:
            raise Skipped("no sample has a readable place to stop at")
        seed, free, stop = fitting[0]
        [stopped] = draw(sampler, seed=seed, stop=stop)
    require(
        stopped.stop_reason == "stop" and len(stopped.tokens) <= 5,
        f"stop={stop!r} gave {len(stopped.tokens)} tokens; the text is complete after 5 of {list(free.tokens)}",
    )


def _tokenizer(model: tinker.TrainingClient) -> Any:
    try:
        return model.get_tokenizer()
    except Exception as error:
        raise Skipped(f"the model's tokenizer cannot be loaded here: {str(error).splitlines()[0][:120]}") from error


CHECKS = (
    max_tokens_is_the_length,
    as_many_samples_as_asked,
    sampled_logprobs_are_the_trainers,
    draws_follow_the_probabilities,
    a_seed_repeats_a_sample,
    temperature_zero_is_greedy,
    top_k_and_top_p_narrow_the_draw,
    a_stop_token_ends_a_sample,
    a_stop_string_ends_a_sample,
)
