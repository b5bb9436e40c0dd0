"""Temperature, entropy and the losses of Weaver's API on two ranks, beside formulas on whole log-softmaxes.

The vocabulary of 131 is padded to 132, so a rank has a row that no token has; chunks are of seven tokens.
"""

from dataclasses import replace

import numpy as np
import pytest
import rank_tasks
import tiny_models
import torch
from formulas import CASES, LOSSES, check, expected, made_data
from parity import create, open_model
from weaver_megatron.layout import Layout

from weaver.backend import Pass

MODEL = "mlp and head"


@pytest.fixture(scope="module")
def group(groups, models):
    opened = groups(Layout(tp=2))
    open_model(opened, models["llama"], budget=24)
    return opened


@pytest.fixture
def reference(group, models):
    """The same adapter in transformers and peft."""
    yield tiny_models.adapted(models["llama"], create(group, (MODEL,))[MODEL])
    group.call(rank_tasks.call, "drop_model", MODEL)


def by_formula(model, cases, masked):
    """The passes of the cases, and what they should give; gradients are in the model."""

    def logits(datum):
        return model(input_ids=torch.from_numpy(datum.tokens_T)[None], use_cache=False).logits[0].float()

    def score(datum, temperature):
        return tiny_models.scores(model, replace(datum, sampling_mask=None), temperature)[0].detach().numpy()

    passes, wanted = [], []
    for case in cases:
        data, loss = made_data(case, tiny_models.VOCABULARY, score, masked=masked), LOSSES[case.loss]
        passes.append(Pass(MODEL, data, loss, case.effective, not loss.forward_only))
        wanted.append(expected(case, data, logits))
    return passes, wanted


def agree(group, reference, cases, masked=()):
    passes, wanted = by_formula(reference, cases, masked)
    results = group.call(rank_tasks.call, "forward_backward", passes)[0]
    for case, found, right in zip(cases, results, wanted, strict=True):
        check(case, found, right)
    if not any(one.backward for one in passes):
        return
    gradients = group.call(rank_tasks.gradients, MODEL)[0]
    for name, right in tiny_models.gradients(reference).items():
        size = max(float(right.abs().max()), 1e-6)
        assert np.abs(gradients[name] - right.numpy()).max() / size <= 1e-4, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_agrees_with_its_formula(group, reference, case):
    agree(group, reference, [case])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_agrees_with_its_formula_over_what_masks_keep(group, reference, case):
    """Each rank drops tokens of its own; of some rows one rank has none at all."""
    agree(group, reference, [case], masked=(0, 2, 3))


def test_passes_of_all_temperatures_agree_in_one_call(group, reference):
    agree(group, reference, CASES)
