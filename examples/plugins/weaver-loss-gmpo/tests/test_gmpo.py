"""`gmpo` against the paper's formula, written out as a product of ratios, and against finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from weaver_loss_gmpo import gmpo, weaver_losses

from weaver.domain import Datum
from weaver.errors import InvalidInput
from weaver.testing import check_loss

LOGPROBS = [-1.0, -2.0, -0.5, -3.0]
SAMPLED = [-1.1, -2.9, -0.4, -2.0]
CLIP = {"clip_low": 0.4, "clip_high": 0.4}


def paper(logprobs, sampled, advantage, low, high):
    """Equation by equation: min of the ratio and its clipped self, both to the power of A's sign; the n-th root."""
    sign, product = (1 if advantage > 0 else -1), 1.0
    for lp, q in zip(logprobs, sampled, strict=True):
        ratio = np.exp(lp) / np.exp(q)
        clipped = np.clip(ratio, np.exp(-low), np.exp(high))
        product *= min(ratio**sign, clipped**sign) ** sign
    return -advantage * product ** (1 / len(logprobs))


def given(advantage, **more):
    return {"logprobs": torch.tensor(SAMPLED), "advantage": torch.tensor(advantage), **more}


@pytest.mark.parametrize("advantage", [1.5, -0.5])
@pytest.mark.parametrize(("low", "high"), [(0.4, 0.4), (0.05, 0.7), (2.0, 0.0)])
def test_the_value_is_the_papers(advantage, low, high):
    found = gmpo(torch.tensor(LOGPROBS), given(advantage), {"clip_low": low, "clip_high": high})
    np.testing.assert_allclose(found.loss, paper(LOGPROBS, SAMPLED, advantage, low, high), rtol=1e-6)


def test_tokens_outside_the_answer_count_for_nothing():
    mask = torch.tensor([0, 1, 0, 1])
    found = gmpo(torch.tensor(LOGPROBS), given(2.0, mask=mask), CLIP)
    np.testing.assert_allclose(found.loss, paper(LOGPROBS[1::2], SAMPLED[1::2], 2.0, 0.4, 0.4), rtol=1e-6)
    assert found.metrics["clipped_fraction:mean"] == 0.5


def test_a_clipped_token_has_no_gradient_and_the_others_share_the_ratios():
    leaf = torch.tensor(LOGPROBS, requires_grad=True)
    found = gmpo(leaf, given(2.0), CLIP)
    found.loss.backward()
    share = found.loss.item() / 4
    np.testing.assert_allclose(leaf.grad, [share, 0, share, share], rtol=1e-6)


def test_an_answer_without_tokens_is_refused():
    with pytest.raises(InvalidInput, match="mask is 0 everywhere"):
        gmpo(torch.tensor(LOGPROBS), given(1.0, mask=torch.zeros(4)), CLIP)


def test_it_keeps_the_contract():
    [loss] = weaver_losses()
    check_loss(loss)
    check_loss(loss, config={"clip_low": 3.0, "clip_high": 0.1})
    rng = np.random.default_rng(1)
    made = [Datum(np.arange(n), {"target_tokens": np.arange(n)}) for n in (4, 9)]
    masked = [
        replace(
            datum,
            loss_fn_inputs=dict(datum.loss_fn_inputs)
            | {
                "logprobs": rng.uniform(-4, -1, datum.tokens_T.size).astype(np.float32),
                "advantage": rng.normal(size=1).astype(np.float32),
                "mask": (datum.tokens_T % 3 != 0).astype(np.int64),
            },
        )
        for datum in made
    ]
    check_loss(loss, data=masked)


def test_it_is_found_where_it_is_installed(weaver_registry):
    assert weaver_registry.loss("gmpo").plugin == "weaver-loss-gmpo 0.1.0"
