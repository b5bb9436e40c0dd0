"""Turns become as few traces as hold them, with nothing in the loss that was not sampled."""

import numpy as np
import pytest
from weaver_nexau.turns import Trace, Turn, group_advantages, loss_inputs, traces

FIRST = Turn((1, 2, 3), (4, 5), (-0.5, -0.25))
SECOND = Turn((1, 2, 3, 4, 5, 6), (7,), (-0.125,))


def test_a_turn_that_goes_on_from_the_one_before_joins_it():
    assert traces([FIRST, SECOND]) == [
        Trace((1, 2, 3, 4, 5, 6, 7), (0, 0, 0, 1, 1, 0, 1), (0.0, 0.0, 0.0, -0.5, -0.25, 0.0, -0.125))
    ]


def test_a_turn_whose_prompt_differs_by_one_token_begins_a_trace():
    other = Turn((1, 2, 3, 4, 9, 6), (7,), (-0.125,))
    assert traces([FIRST, other]) == [Trace.of(FIRST), Trace.of(other)]
    assert traces([FIRST, other])[1].sampled == (0, 0, 0, 0, 0, 0, 1), "what it said before is shown, not said again"


def test_a_turn_that_repeats_the_prompt_begins_a_trace():
    assert traces([FIRST, FIRST]) == [Trace.of(FIRST)] * 2


def test_no_turns_are_no_traces():
    assert traces([]) == []


def test_a_loss_reads_what_comes_out_after_each_token():
    tokens, inputs = loss_inputs(traces([FIRST, SECOND])[0], advantage=-2.0)
    assert tokens == [1, 2, 3, 4, 5, 6]
    assert inputs["target_tokens"].tolist() == [2, 3, 4, 5, 6, 7]
    assert inputs["logprobs"].tolist() == [0, 0, -0.5, -0.25, 0, -0.125]
    assert inputs["advantages"].tolist() == [0, 0, -2, -2, 0, -2]
    assert inputs["loss_mask"].tolist() == [0, 0, 1, 1, 0, 1]
    assert {name: value.dtype.name for name, value in inputs.items()} == {
        "target_tokens": "int64",
        "logprobs": "float32",
        "advantages": "float32",
        "loss_mask": "float32",
    }


def test_an_answer_whose_tokens_and_logprobs_do_not_match_is_refused():
    with pytest.raises(ValueError, match="2 response_tokens and 1 response_logprobs: every token needs its logprob"):
        Turn.of({"prompt_tokens": [1], "response_tokens": [2, 3], "response_logprobs": [-1.0]})


def test_advantages_compare_a_group_with_itself():
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [1.0, -1.0, -1.0, 1.0]
    assert group_advantages([0.5, 0.5, 0.5]) == [0.0, 0.0, 0.0]
    assert np.mean(group_advantages([0.0, 0.5, 1.0])) == pytest.approx(0)
