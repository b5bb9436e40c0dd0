"""Every loss, and whatever else a loss may do, on ranks."""

import numpy as np
import pytest
import rank_tasks
from parity import LOSSES, Worst, by_ranks, by_transformers, create, datum, open_model
from strange_losses import CONTRAST, DRAWING, INFINITE, RAISING
from weaver_megatron.layout import Layout

from weaver.backend import Pass
from weaver.domain import AdamParams
from weaver.errors import LossFailed
from weaver.testing.bench import WHOLE_ENTROPIC

LAYOUTS = [Layout(tp=2, sequence_parallel=True), Layout(tp=2, dp=2)]
CONFIGS = {"dro": {"beta": 0.3}, WHOLE_ENTROPIC.name: {"entropy_coeff": 1.0, "temperature": 1.4}}
MODEL = "mlp and head"
ALL = [*(loss for loss in LOSSES.values() if loss.from_graph is None), CONTRAST, WHOLE_ENTROPIC]
FAILING = [(RAISING, r"'raising' failed on data\[1\]: RuntimeError: fourteen"), (INFINITE, "gradient is not finite")]


@pytest.fixture(params=LAYOUTS, ids=["TP2, sequence parallel", "TP2 x DP2"], scope="module")
def opened(groups, models, request):
    group = groups(request.param)
    open_model(group, models["qwen3"], budget=24)
    return group, models["qwen3"]


@pytest.fixture
def group(opened):
    group, _ = opened
    yield group
    group.call(rank_tasks.call, "drop_model", MODEL)


@pytest.fixture
def data():
    generator = np.random.default_rng(7)
    return [datum(generator, n) for n in (9, 14, 4, 11)]


def config_of(loss):
    return loss.effective_config(CONFIGS.get(loss.name, {}))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_each_loss_gives_the_gradients_it_gives_in_one_process(opened, group, data, loss):
    _, folder = opened
    adapters, worst = create(group, (MODEL,)), Worst()
    passes = [Pass(MODEL, data, loss, config_of(loss), not loss.forward_only)]
    worst.add(by_ranks(group, passes), by_transformers(folder, adapters, passes))
    assert worst.logprob <= 1e-5
    assert worst.gradient <= 1e-4, worst.where


def test_results_and_outputs_come_in_the_order_of_the_data(group, data):
    create(group, (MODEL,))
    (found,) = group.call(rank_tasks.call, "forward_backward", [Pass(MODEL, data, CONTRAST, {}, False)])[0]
    means = np.array([(a * d.loss_fn_inputs["weights"]).mean() for a, d in zip(found.logprobs, data)])
    assert [len(array) for array in found.logprobs] == [9, 14, 4, 11]
    assert found.metrics["loss:sum"] == pytest.approx(np.log(np.exp(means).sum()), rel=1e-5)
    assert found.metrics["spread:max"] == pytest.approx(means.max() - means.min(), rel=1e-5)
    shares = [float(one["share"][0]) for one in found.outputs]
    assert shares == pytest.approx(np.exp(means) / np.exp(means).sum(), rel=1e-5)


@pytest.mark.parametrize(("loss", "says"), FAILING, ids=lambda one: getattr(one, "name", ""))
def test_a_pass_that_fails_changes_no_other(group, data, loss, says):
    create(group, (MODEL, "all"))
    cross_entropy = LOSSES["cross_entropy"]
    good = [Pass("all", data, cross_entropy, {}, True), Pass(MODEL, data[:1], cross_entropy, {}, True)]
    alone = by_ranks(group, good)
    create(group, (MODEL, "all"))
    bad = Pass(MODEL, data, loss, {}, True)
    for results in group.call(rank_tasks.call, "forward_backward", [good[0], bad, good[1]]):
        assert [isinstance(one, LossFailed) for one in results] == [False, True, False]
        with pytest.raises(LossFailed, match=says):
            raise results[1]
    for name, gradient in alone.gradients.items():
        model_id, tensor = name.split(": ")
        found = group.call(rank_tasks.gradients, model_id)[0][tensor]
        np.testing.assert_allclose(found, gradient, atol=1e-6 * np.abs(gradient).max(), err_msg=name)


def test_a_loss_that_draws_numbers_leaves_all_ranks_with_the_same_weights(group, data):
    create(group, (MODEL,))
    group.call(rank_tasks.call, "forward_backward", [Pass(MODEL, data, DRAWING, {}, True)])
    group.call(rank_tasks.call, "optim_step", MODEL, AdamParams(0.1))
    copies = group.call(rank_tasks.whole_parameters, MODEL)
    assert copies[0]
    for other in copies[1:]:
        for name, tensor in copies[0].items():
            assert np.array_equal(tensor, other[name]), name
