"""Logprobs of the prompt's own tokens."""

from collections.abc import Sequence

import numpy as np
import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import A, Lab, look, probe_scores, run, scores, snapshot, waited
from weaver.conformance.recipes import passes, plain

GROUP = "prompt logprobs"

TOP = 4

TEXT = A.whole


def one_logprob_per_prompt_token(lab: Lab) -> None:
    """They are read by position: the first token has none, and one entry too few shifts every other by a token."""
    with lab.session() as session:
        sampler = session.sampler()
        for tokens in (TEXT, TEXT[:2], TEXT[:1]):
            found = scores(sampler, tokens)
            require(len(found) == len(tokens), f"a prompt of {len(tokens)} tokens has {len(found)} logprobs")
            require(found[0] is None, f"the first token of a prompt has the logprob {found[0]}; nothing predicts it")
            require(None not in found[1:], f"of {len(tokens)} prompt tokens more than the first have no logprob")


def prompt_logprobs_are_the_trainers(lab: Lab) -> None:
    """Scoring a text by the sampler and by the trainer must give one answer."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        lab.agree(probe_scores(snapshot(model)), look(model), "prompt logprobs, against the trainer's forward")


def prompt_logprobs_do_not_depend_on_what_is_drawn(lab: Lab) -> None:
    """A prompt is scored as it stands, at temperature one, whatever comes behind it."""
    with lab.session() as session:
        sampler = session.sampler()
        alone = scores(sampler, TEXT)[1:]
        params = tinker.SamplingParams(max_tokens=3, temperature=0.3, top_k=5, stop=[])
        beside = waited(sampler.sample(tinker.ModelInput.from_ints(list(TEXT)), 3, params, True)).prompt_logprobs
    lab.agree(beside[1:], alone, "prompt logprobs beside samples at temperature 0.3, against alone")


def no_prompt_logprobs_unless_asked(lab: Lab) -> None:
    """They cost time and bytes."""
    with lab.session() as session:
        params = tinker.SamplingParams(max_tokens=1, stop=[])
        answer = waited(session.sampler().sample(tinker.ModelInput.from_ints(list(TEXT)), 1, params))
    require(answer.prompt_logprobs is None, "a sample that did not ask for prompt logprobs has them")


def the_top_tokens_of_a_position_are_its_best(lab: Lab) -> None:
    """Distillation reads them: k per position, the likeliest first, and no other token likelier."""
    prompt, params = tinker.ModelInput.from_ints(list(TEXT)), tinker.SamplingParams(max_tokens=1, stop=[])
    with lab.session() as session:
        answer = waited(session.sampler().sample(prompt, 1, params, True, topk_prompt_logprobs=TOP))
    rows, own = answer.topk_prompt_logprobs or [], answer.prompt_logprobs or []
    require(len(rows) == len(own) == len(TEXT), f"{len(TEXT)} prompt tokens have {len(rows)} rows of top tokens")
    require(not rows[0], f"the first prompt token has top tokens, {rows[0]}; nothing predicts it")
    for place in range(1, len(TEXT)):
        _check_row(place, rows[place], own[place])


def _check_row(place: int, row: Sequence[tuple[int, float]], logprob: float) -> None:
    ordered = [value for _, value in row]
    require(len(dict(row)) == TOP, f"position {place} has the top tokens {row}, {TOP} were asked for")
    require(ordered == sorted(ordered, reverse=True), f"the top tokens of position {place} are not in order: {row}")
    require(sum(np.exp(ordered)) <= 1.01, f"the top tokens of position {place} have more than probability one: {row}")
    bound = dict(row).get(TEXT[place], ordered[-1]) + 0.02
    require(logprob <= bound, f"token {place}, with logprob {logprob:.4g}, is likelier than its place in {row}")


CHECKS = (
    one_logprob_per_prompt_token,
    prompt_logprobs_are_the_trainers,
    prompt_logprobs_do_not_depend_on_what_is_drawn,
    no_prompt_logprobs_unless_asked,
    the_top_tokens_of_a_position_are_its_best,
)
