"""`bradley_terry` against its formula in numbers and by finite differences, and what it refuses."""

import numpy as np
import pytest
import torch
from weaver_loss_bradley_terry import bradley_terry, weaver_losses

from weaver.domain import Datum
from weaver.errors import InvalidInput
from weaver.testing import check_loss

[LOSS] = weaver_losses()
LOGPROBS = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5]), torch.tensor([-4.0]), torch.tensor([-3.0, -1.0])]


def answers(*pairs_and_preferred):
    return [
        {"pair": torch.tensor(pair), "preferred": torch.tensor(preferred)} for pair, preferred in pairs_and_preferred
    ]


CROSSED = ((7, 0), (-2, 1), (7, 1), (-2, 0))


def test_the_value_is_the_formulas_whatever_the_order():
    found = bradley_terry(LOGPROBS, answers(*CROSSED), {"beta": 0.5})
    expected = np.log1p(np.exp(-0.5 * (-4.0 + 3.0))) + np.log1p(np.exp(-0.5 * (-0.5 + 4.0)))
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    assert found.metrics == {"pairs:sum": 2, "margin:mean": 0.5 * (-1.0 + 3.5) / 2, "accuracy:mean": 0.5}


def test_weights_and_references_make_the_score():
    inputs = answers(*CROSSED)
    inputs[0] |= {"weights": torch.tensor([0.0, -1.5]), "reference": torch.tensor(1.0)}
    inputs[2] |= {"reference": torch.tensor(-4.5)}
    found = bradley_terry(LOGPROBS, inputs, {"beta": 1.0})
    np.testing.assert_allclose([float(score) for score in found.outputs["score"]], [2.0, -0.5, 0.5, -4.0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((1, 1), (1, 0), (2, 1)), r"^data\[2\] is alone in pair 2; send both answers in one call$"),
        (((1, 1), (2, 0), (1, 1)), r"^data\[0\] and data\[2\] are both the answer of pair 1 with preferred = 1; give"),
        (((1, 1), (1, 2)), r"^data\[1\].loss_fn_inputs\['preferred'\] is 2; it must be 1 or 0$"),
    ],
)
def test_what_is_no_pair_is_refused(given, message):
    with pytest.raises(InvalidInput, match=message):
        bradley_terry(LOGPROBS[: len(given)], answers(*given), {"beta": 1.0})


def test_half_a_reference_is_refused():
    inputs = answers((3, 1), (3, 0))
    inputs[1]["reference"] = torch.tensor(0.0)
    with pytest.raises(InvalidInput, match="one answer of pair 3 has a 'reference' and the other has none"):
        bradley_terry(LOGPROBS[:2], inputs, {"beta": 1.0})


@pytest.mark.parametrize("weighted", [True, False])
def test_it_keeps_the_contract(weighted):
    rng = np.random.default_rng(3)
    data = []
    for length, (pair, preferred) in zip((5, 1, 8, 3), CROSSED, strict=True):
        tokens = rng.integers(2, 50, length)
        inputs = {"target_tokens": tokens, "pair": np.array([pair]), "preferred": np.array([preferred])}
        if weighted:
            inputs["weights"] = rng.normal(size=length).astype(np.float32)
        data.append(Datum(tokens, inputs))
    check_loss(LOSS, data=data, config={"beta": 0.7})


def test_it_is_found_where_it_is_installed(weaver_registry):
    assert weaver_registry.loss("bradley_terry").plugin == "weaver-loss-bradley-terry 0.1.0"
