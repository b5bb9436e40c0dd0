"""Logprobs at a prompt's positions: of tokens that are named, of tokens that are drawn, and of a prompt's end alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tinker

from weaver.conformance.checks import Failed, require
from weaver.conformance.lab import A, B, Lab, run, scores, snapshot, waited
from weaver.conformance.prompts import TEXT
from weaver.conformance.recipes import Array, passes, plain

GROUP = "prompt logprobs"

ALTERNATIVES = 3
LAST = 3
PLACE = 4
OTHER = next(token for token in B.tokens if token != TEXT[PLACE])


def _scored(sampler: tinker.SamplingClient, *, prompt_logprobs: bool = False, **asked: Any) -> tinker.SampleResponse:
    params = tinker.SamplingParams(max_tokens=1, stop=[])
    prompt = tinker.ModelInput.from_ints(list(TEXT))
    return waited(sampler.sample(prompt, 1, params, prompt_logprobs, **asked))


def _table(rows: Sequence[Sequence[int]]) -> tinker.TensorData:
    return tinker.TensorData.from_numpy(np.array(rows, np.int64))


def _trained(lab: Lab, model: tinker.TrainingClient) -> tinker.SamplingClient:
    run(model, [passes(A), plain(lab.rate)])
    return snapshot(model)


def named_tokens_are_scored_at_their_positions(lab: Lab) -> None:
    """Distillation asks for tokens that are not in the prompt; row i is about what could stand at position i + 1."""
    targets = [[token, token] for token in TEXT[1:]]
    targets[PLACE - 1][1] = OTHER
    with lab.session() as session:
        sampler = _trained(lab, session.model())
        answer = _scored(sampler, target_prompt_logprobs=_table(targets))
        own = scores(sampler, TEXT)[1:]
        other = scores(sampler, [*TEXT[:PLACE], OTHER])[-1]
    require(answer.target_prompt_logprobs is not None, "target_prompt_logprobs was asked for and is not there")
    found = _array(answer.target_prompt_logprobs)
    require(found.shape == (len(targets), 2), f"a table of shape {(len(targets), 2)} was answered by {found.shape}")
    lab.agree(found[:, 0], own, "logprobs of the prompt's own tokens as targets, against compute_logprobs")
    lab.agree(found[PLACE - 1, 1], other, "the logprob of another token, against that of the prompt that has it")


def _array(tensor: tinker.TensorData | None) -> Array:
    return np.asarray(tensor.to_numpy(), float) if tensor is not None else np.zeros(0)


def a_prompts_end_alone_can_be_scored(lab: Lab) -> None:
    """Long conversations are scored at their last turn; positions must stay the whole prompt's."""
    with lab.session() as session:
        sampler = session.sampler()
        whole = scores(sampler, TEXT)
        found = _scored(sampler, prompt_logprobs=True, prompt_logprobs_last_n=LAST).prompt_logprobs or []
    require(len(found) == len(TEXT), f"{len(TEXT)} prompt tokens have {len(found)} logprobs")
    skipped = [place for place, one in enumerate(found) if one is None]
    expected = list(range(len(TEXT) - LAST))
    require(skipped == expected, f"prompt_logprobs_last_n={LAST} left out {skipped} of {len(TEXT)} positions")
    lab.agree(found[-LAST:], whole[-LAST:], f"the last {LAST} prompt logprobs alone, against all of them")


def alternatives_to_a_prompt_have_their_logprobs(lab: Lab) -> None:
    """They are drawn where the prompt's tokens stand, and scored as if they were asked for by name."""
    with lab.session() as session:
        sampler = _trained(lab, session.model())
        found = _scored(sampler, prompt_alt_tokens_k=ALTERNATIVES).prompt_alt_tokens
        if found is None:
            raise Failed("prompt_alt_tokens_k was given and there are no alternatives")
        tokens = found.tokens.to_numpy()
        shape = (len(TEXT) - 1, ALTERNATIVES)
        require(tokens.shape == shape, f"the alternatives have the shape {tokens.shape}, not {shape}")
        expected = _array(_scored(sampler, target_prompt_logprobs=_table(tokens.tolist())).target_prompt_logprobs)
    lab.agree(_array(found.logprobs), expected, "logprobs of alternatives, against those of the same tokens by name")
    require(len(np.unique(tokens)) > 1, "all alternatives at all positions are the same token")


CHECKS = (
    named_tokens_are_scored_at_their_positions,
    a_prompts_end_alone_can_be_scored,
    alternatives_to_a_prompt_have_their_logprobs,
)
