"""Temperature, entropy and the losses of Weaver's API: values, logprobs and gradients beside formulas written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from formulas import CASES, LOSSES, check, expected, made_data
from weaver_peft import logprobs
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.domain import LoraSpec, ModelSource
from weaver.testing.bench import Bench
from weaver.testing.making import Making
from weaver.testing.reference import VOCABULARY, TrainingReference, write_model

SMALL = 7 * VOCABULARY
"""Elements of a chunk of seven tokens: distributions are then not kept for the gradient, but computed again."""
WHOLE, CHUNKS, TIED = ("llama", None), ("llama", SMALL), ("qwen3", SMALL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_model(name, tmp_path_factory.mktemp(name)) for name in ("llama", "qwen3")}


@pytest.fixture
def bench(folders, request, monkeypatch):
    name, elements = request.param
    if elements is not None:
        monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", elements)
    source = ModelSource("tiny", str(folders[name]), "cpu")
    backend = open_backend(source)
    yield Bench(backend, None, source, folders[name], Making(0, VOCABULARY), {}, 1e-4)
    backend.close()


def by_formula(bench, *cases, masked=()):
    """The passes of the cases, what they should give, and the sum of all their gradients. The data numbered in `masked`
    have sampling masks."""
    state = bench.trained("a", LoraSpec(rank=4, alpha=8.0, seed=1))
    reference = TrainingReference(bench.model, state.adapter)

    def logits(datum):
        return reference._model(input_ids=torch.from_numpy(datum.tokens_T)[None]).logits[0]

    def score(datum, temperature):
        found, _ = reference.scores(replace(datum, sampling_mask=None), temperature)
        return found.detach().numpy()

    passes, wanted = [], []
    for case in cases:
        data, loss = made_data(case, VOCABULARY, score, masked=masked), LOSSES[case.loss]
        passes.append(Pass("a", data, loss, case.effective, not loss.forward_only))
        wanted.append(expected(case, data, logits))
    gradients = {
        name: np.zeros(one.shape, np.float32) if one.grad is None else one.grad.numpy()
        for name, one in reference.parameters.items()
    }
    return passes, wanted, gradients


@pytest.mark.parametrize("bench", [WHOLE, CHUNKS], indirect=True, ids=["one chunk", "chunks"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_agrees_with_its_formula(bench, case):
    passes, wanted, gradients = by_formula(bench, case)
    check(case, bench.run(*passes)[0], wanted[0])
    bench.same_gradients(bench.gradients("a"), gradients)


@pytest.mark.parametrize("bench", [WHOLE, CHUNKS], indirect=True, ids=["one chunk", "chunks"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_agrees_with_its_formula_over_what_masks_keep(bench, case):
    """Of three data of four: the second has none."""
    passes, wanted, gradients = by_formula(bench, case, masked=(0, 2, 3))
    check(case, bench.run(*passes)[0], wanted[0])
    bench.same_gradients(bench.gradients("a"), gradients)


@pytest.mark.parametrize("bench", [WHOLE, CHUNKS, TIED], indirect=True, ids=["one chunk", "chunks", "tied"])
def test_passes_of_all_temperatures_agree_in_one_call(bench):
    passes, wanted, gradients = by_formula(bench, *CASES)
    for case, found, right in zip(CASES, bench.run(*passes), wanted, strict=True):
        check(case, found, right)
    bench.same_gradients(bench.gradients("a"), gradients)


@pytest.mark.parametrize("bench", [WHOLE], indirect=True, ids=[""])
def test_the_formulas_are_tried_on_both_sides_of_every_bound(bench):
    """Of ratios that are all inside, a wrong bound would not show."""
    for case in CASES:
        if case.loss in ("ppo_clip", "truncated_importance_sampling"):
            [one], [right], _ = by_formula(bench, case)
            pairs = zip(right.logprobs, one.data, strict=True)
            ratios = np.concatenate([np.exp(lp - datum.loss_fn_inputs["logprobs"]) for lp, datum in pairs])
            assert ratios.min() < 0.8 < 1.2 < ratios.max()
