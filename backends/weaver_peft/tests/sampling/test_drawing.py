import numpy as np
import pytest
import torch
from weaver_peft.drawing import draw, row_generator

from weaver.domain import SamplingParams

from .tiny import distribution


def params(**given):
    return SamplingParams(max_tokens=1, **given)


def logits(rows=1, vocabulary=50, scale=2.0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)) * scale


def draws(logits_V, each, count):
    uniforms = row_generator(0, 0).random(count)
    return draw(logits_V.repeat(count, 1), [each] * count, uniforms.tolist(), [0] * count)


@pytest.mark.parametrize(
    "each",
    [
        params(),
        params(temperature=0.5),
        params(temperature=1.5, top_k=7),
        params(temperature=1.5, top_p=0.6),
        params(temperature=2.0, top_k=30, top_p=0.9),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(each):
    [logits_V], count = logits(), 20_000
    expected_V = distribution(logits_V.double(), each).numpy() * count
    observed_V = np.bincount(draws(logits_V, each, count).tokens, minlength=50)
    assert not observed_V[expected_V == 0].any()
    common = expected_V > 5
    chi_square = ((observed_V - expected_V) ** 2 / np.where(common, expected_V, 1))[common].sum()
    degrees = common.sum() - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("top_k", [1, 2, 49, 50, 1000])
@pytest.mark.parametrize("top_p", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_exactly_the_likeliest_tokens_are_kept(top_k, top_p):
    [logits_V], each = logits(scale=0.5), params(top_k=top_k, top_p=top_p)
    drawn = draw(logits_V.repeat(4000, 1), [each] * 4000, np.linspace(0, 1, 4000, endpoint=False).tolist(), [0] * 4000)
    expected_V = distribution(logits_V.double(), each)
    assert set(drawn.tokens) == set(expected_V.nonzero()[:, 0].tolist())
    np.testing.assert_allclose(drawn.logprobs, expected_V[drawn.tokens].log(), atol=1e-5)


def test_of_tokens_that_tie_only_as_many_stay_as_were_asked_for():
    drawn = draws(torch.zeros(50), params(top_k=3), 500)
    assert set(drawn.tokens) == {0, 1, 2}
    np.testing.assert_allclose(drawn.logprobs, -np.log(3), atol=1e-6)


def test_greedy_takes_the_likeliest_and_tells_the_models_own_logprob():
    logits_RV = logits(rows=5)
    expected_RV = logits_RV.log_softmax(1)
    drawn = draw(logits_RV.clone(), [params(temperature=0, top_k=1, top_p=0.1)] * 5, [0.0] * 5, [0] * 5)
    assert drawn.tokens == expected_RV.argmax(1).tolist()
    np.testing.assert_allclose(drawn.logprobs, expected_RV.max(1).values, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_a_tiny_temperature_is_greedy_in_effect(temperature):
    [logits_V] = logits()
    drawn = draws(logits_V, params(temperature=temperature), 10)
    assert set(drawn.tokens) == {logits_V.argmax().item()}
    np.testing.assert_allclose(drawn.logprobs, 0, atol=1e-6)


def test_the_ends_of_the_interval_draw_tokens_that_can_be_drawn():
    logits_V = torch.full((50,), -torch.inf)
    logits_V[[7, 11]] = 0.0
    drawn = draw(logits_V.repeat(2, 1), [params()] * 2, [0.0, float(np.nextafter(1, 0))], [0] * 2)
    assert drawn.tokens == [7, 11]


def test_a_rows_draw_does_not_depend_on_its_neighbours():
    logits_RV, settings = logits(rows=4), [params(), params(temperature=0), params(top_k=3), params(top_p=0.4)]
    uniforms = [0.3, 0.6, 0.9, 0.2]
    together = draw(logits_RV.clone(), settings, uniforms, [0] * len(settings))
    for row in range(4):
        alone = draw(logits_RV[row : row + 1].clone(), settings[row : row + 1], uniforms[row : row + 1], [0])
        assert (alone.tokens, alone.logprobs) == ([together.tokens[row]], [together.logprobs[row]])


def test_logits_that_are_not_finite_show_in_the_logprob_of_their_row_alone():
    logits_RV = logits(rows=2)
    logits_RV[0, 3] = torch.nan
    drawn = draw(logits_RV, [params(), params()], [0.5, 0.5], [0, 0])
    assert np.isnan(drawn.logprobs).tolist() == [True, False]


def test_every_seed_and_sample_has_numbers_of_its_own():
    kinds = [(seed, index) for seed in (0, 1, -1, 2**32, 2**64 - 1, 2**64, 2**200) for index in (0, 1, 2)]
    assert len({row_generator(*kind).random() for kind in kinds}) == len(kinds)
    assert row_generator(2**64, 1).random() == row_generator(2**64, 1).random()
    assert row_generator(None, 0).random() != row_generator(None, 0).random()
