"""What a sample tells besides its tokens and their logprobs."""

import numpy as np
import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import Lab, waited
from weaver.conformance.sampling import LENGTH, PROMPT

GROUP = "sampling"

TOP = 4


def _sample(
    sampler: tinker.SamplingClient, tokens: tuple[int, ...] = PROMPT, number: int = 1, length: int = 1, top: int = 0
) -> tinker.SampleResponse:
    params = tinker.SamplingParams(max_tokens=length, stop=[])
    prompt = tinker.ModelInput.from_ints(list(tokens))
    return waited(sampler.sample(prompt, number, params, topk_sample_logprobs=top))


def the_top_tokens_beside_a_draw_are_its_best(lab: Lab) -> None:
    """Distillation and uncertainty read them: k per drawn token, the likeliest first, the drawn one in its place."""
    with lab.session() as session:
        sampler = session.sampler()
        sequences = _sample(sampler, number=3, length=LENGTH, top=TOP).sequences
        for one in sequences:
            _check_rows(one)
        whole = [*PROMPT, *sequences[0].tokens]
        scored = waited(
            sampler.sample(
                tinker.ModelInput.from_ints(whole), 1, tinker.SamplingParams(max_tokens=1, stop=[]), True, TOP
            )
        )
    told = [[value for _, value in row or ()] for row in sequences[0].topk_logprobs or ()]
    expected = [[value for _, value in row] for row in scored.topk_prompt_logprobs[len(PROMPT) :]]
    lab.agree(told, expected, "the top logprobs beside drawn tokens, against those of the same text as a prompt")


def _check_rows(drawn: tinker.SampledSequence) -> None:
    rows = drawn.topk_logprobs or []
    require(len(rows) == len(drawn.tokens), f"{len(drawn.tokens)} drawn tokens have {len(rows)} rows of top tokens")
    for token, logprob, row in zip(drawn.tokens, drawn.logprobs or (), rows, strict=True):
        values = [value for _, value in row or ()]
        require(len(dict(row or ())) == TOP, f"a drawn token has the top tokens {row}, {TOP} were asked for")
        require(values == sorted(values, reverse=True), f"the top tokens {row} are not in order")
        require(sum(np.exp(values)) <= 1.01, f"the top tokens {row} have more than probability one")
        own = dict(row or ()).get(token)
        fitting = logprob <= values[-1] + 0.02 if own is None else abs(logprob - own) <= 0.02
        require(fitting, f"the drawn token {token} has the logprob {logprob:.4g} beside the top tokens {row}")


def no_top_tokens_unless_asked(lab: Lab) -> None:
    """They are k times the bytes of a sample."""
    with lab.session() as session:
        [one] = _sample(session.sampler(), length=3).sequences
    require(not one.topk_logprobs, f"a sample that did not ask for top tokens has {one.topk_logprobs}")


def every_sequence_has_an_id_of_its_own(lab: Lab) -> None:
    """Data name what they were drawn as; two sequences of one name would lend each other their logprobs."""
    with lab.session() as session:
        samplers = session.sampler(), session.sampler()
        answers = [_sample(sampler, number=3) for sampler in (*samplers, samplers[0])]
    ids = [one.sequence_id for answer in answers for one in answer.sequences]
    require(all(ids) and len(set(ids)) == len(ids), f"nine sequences are called {ids}")


def cached_prompt_tokens_are_the_prompts(lab: Lab) -> None:
    """Users read them as a share of what they sent; a prompt cannot be cached beyond its end."""
    with lab.session() as session:
        sampler = session.sampler()
        for number in (1, 3, 3):
            hits = _sample(sampler, number=number).prompt_cache_hit_tokens
            require(0 <= hits <= len(PROMPT), f"{hits} tokens of a prompt of {len(PROMPT)} were cached")


CHECKS = (
    the_top_tokens_beside_a_draw_are_its_best,
    no_top_tokens_unless_asked,
    every_sequence_has_an_id_of_its_own,
    cached_prompt_tokens_are_the_prompts,
)
