"""`check_backend`: the contract `weaver.backend.Backend` as checks against transformers, peft and torch's AdamW."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from weaver.backend import BackendFactory, ModelSource, Pass
from weaver.domain import AdamParams, DimuonParams, FloatArray, ForwardBackwardResult, ModelState, OptimParams
from weaver.errors import InvalidInput, LossFailed
from weaver.loss import Loss
from weaver.plugins.losses import weaver_losses
from weaver.testing.bench import (
    BROKEN,
    ENTROPIC,
    LORA,
    MIXED,
    NOTHING,
    WHOLE,
    WHOLE_ENTROPIC,
    Bench,
    Tensors,
    agrees_with_peft,
)
from weaver.testing.making import Making
from weaver.testing.reference import CONTEXT, FAMILIES, VOCABULARY, TrainingReference, write_model
from weaver.testing.sampling_masks import a_sampling_mask_leaves_what_it_names


def check_backend(
    factory: BackendFactory,
    *,
    families: Iterable[str] = FAMILIES,
    losses: Iterable[Loss] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    tolerance: float = 1e-4,
    only: Collection[str] = (),
) -> None:
    """Open a backend on tiny random models and compare what it does with transformers, peft and torch.

    Every check of `CHECKS`, or those that `only` names, runs on a model of every family. Raises AssertionError with a
    line for each promise that is broken. `losses` are all that weaver ships unless given; `tolerance` is relative: of a
    gradient's norm, of a value; of a logprob it is absolute. The backend is closed at the end.
    """
    shipped = [loss for loss in weaver_losses() if loss.from_graph is None] if losses is None else list(losses)
    wanted = {name: check for name, check in CHECKS.items() if not only or name in only}
    if unknown := set(only) - CHECKS.keys():
        raise ValueError(f"there are no checks {sorted(unknown)}; there are: {', '.join(CHECKS)}")
    broken = []
    for family in families:
        with bench_of(factory, family, shipped, device, dtype, tolerance) as bench:
            broken += [f"{family}: {name}: {why}" for name, check in wanted.items() if (why := _fault(bench, check))]
    if broken:
        raise AssertionError(f"the backend {factory.name!r} breaks its contract:\n" + "\n".join(broken))


@contextmanager
def bench_of(
    factory: BackendFactory, family: str, losses: Iterable[Loss], device: str, dtype: str, tolerance: float
) -> Iterator[Bench]:
    """The backend opened on a tiny model of the family, until the context ends."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(family, Path(folder) / family)
        source = ModelSource(f"tiny/{family}", str(model), device, dtype)
        backend = factory.open(source)
        try:
            by_name = {loss.name: loss for loss in losses}
            yield Bench(backend, factory, source, model, Making(0, VOCABULARY), by_name, tolerance)
        finally:
            backend.close()


def _fault(bench: Bench, check: Callable[[Bench], None]) -> str | None:
    """What is wrong; the models of the check are gone afterwards."""
    return _said(bench, check) or _said(bench, _drop_models)


def _drop_models(bench: Bench) -> None:
    for model_id in "abc":
        bench.backend.drop_model(model_id)


def _said(bench: Bench, check: Callable[[Bench], None]) -> str | None:
    try:
        check(bench)
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except Exception as error:  # noqa: BLE001 -- a backend may raise anything; the other checks still run
        return f"{type(error).__name__}: {error}"
    return None


def a_model_is_described(bench: Bench) -> None:
    facts = bench.factory.describe(bench.source)
    found = (facts.name, facts.vocabulary_size, facts.context_length)
    assert found == (bench.source.name, VOCABULARY, CONTEXT), f"describe says {found}"


def a_new_model_follows_from_its_seed_and_changes_nothing(bench: Bench) -> None:
    for model_id, seed in (("a", 1), ("b", 1), ("c", 2)):
        bench.backend.create_model(model_id, replace(LORA, seed=seed))
    a, b, c = (bench.backend.export_state(model_id, optimizer=False).adapter.tensors for model_id in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a), "two models of one seed begin with different weights"
    drawn = [name for name in a if "lora_A" in name]
    assert drawn, "there is no lora_A among the exported tensors"
    assert not any(np.array_equal(a[name], c[name]) for name in drawn), "another seed begins with the same weights"
    assert all(not a[name].any() for name in a if "lora_B" in name), "a new adapter's B is not zero"


def every_loss_agrees_with_peft(bench: Bench) -> None:
    bench.trained("a")
    for loss in bench.losses.values():
        agrees_with_peft(bench, bench.one_pass("a", loss))


def several_targets_per_token_agree(bench: Bench) -> None:
    bench.trained("a")
    loss = bench.losses["cross_entropy"]
    data = [bench.making.datum(loss, length, targets) for length, targets in ((13, 3), (5, 3), (8, 1), (9, None))]
    agrees_with_peft(bench, Pass("a", data, loss, {}, backward=True))


def a_loss_that_sees_the_batch_agrees(bench: Bench) -> None:
    bench.trained("a")
    agrees_with_peft(bench, bench.one_pass("a", WHOLE, (*MIXED, 200, 230)))


def a_temperature_divides_the_logits(bench: Bench) -> None:
    """Of the logprobs that come back too, and of no other pass in the same call."""
    bench.trained("a")
    loss = bench.losses["cross_entropy"]
    agrees_with_peft(
        bench,
        bench.one_pass("a", loss, (9, 30), temperature=0.6),
        bench.one_pass("a", loss, (12,)),
        bench.one_pass("a", loss, (70, 2), temperature=2.5),
        bench.one_pass("a", loss, (8, 5), backward=False, temperature=0.6),
    )


def entropies_are_of_the_whole_distributions(bench: Bench) -> None:
    """One for each token, whatever its targets, and differentiable; only where they are asked for."""
    bench.trained("a")
    several = [bench.making.datum(ENTROPIC, length, targets=3) for length in (6, 11)]
    config = ENTROPIC.effective_config({"entropy_coeff": -0.4})
    agrees_with_peft(
        bench,
        bench.one_pass("a", ENTROPIC, entropy_coeff=1.5, temperature=0.7),
        bench.one_pass("a", ENTROPIC, (9, 4)),
        Pass("a", several, ENTROPIC, config, backward=True),
        bench.one_pass("a", ENTROPIC, (5, 3), backward=False, entropy_coeff=0.5),
    )


def a_loss_that_sees_the_batch_gets_its_entropies(bench: Bench) -> None:
    bench.trained("a")
    agrees_with_peft(bench, bench.one_pass("a", WHOLE_ENTROPIC, (*MIXED, 200), entropy_coeff=1.0, temperature=1.7))


def data_as_long_as_the_context_are_not_cut(bench: Bench) -> None:
    bench.trained("a")
    agrees_with_peft(bench, bench.one_pass("a", bench.losses["cross_entropy"], (CONTEXT, 3, CONTEXT)))


def each_flag_trains_its_layers(bench: Bench) -> None:
    flags = {"train_mlp": "mlp", "train_attn": "self_attn", "train_unembed": "lm_head"}
    for flag, absent in flags.items():
        bench.trained("a", replace(LORA, **{flag: False}))  # type: ignore[arg-type]
        names = bench.backend.export_state("a", optimizer=False).adapter.tensors
        assert names, f"{flag}=False leaves nothing to train"
        assert not any(absent in name for name in names), f"{flag}=False trains {absent}"
        agrees_with_peft(bench, bench.one_pass("a", bench.losses["cross_entropy"], (9, 4)))
        bench.backend.drop_model("a")


def passes_accumulate(bench: Bench) -> None:
    bench.trained("a")
    loss = bench.losses["cross_entropy"]
    first, second = bench.one_pass("a", loss, (11, 30)), bench.one_pass("a", loss, (7,))
    bench.run(first)
    bench.run(second)
    apart = bench.gradients("a")
    bench.run(replace(first, data=[*first.data, *second.data]))
    together = bench.gradients("a")
    bench.same_gradients(apart, together)
    bench.run(first, second)
    bench.same_gradients(bench.gradients("a"), together)


def a_forward_pass_accumulates_nothing(bench: Bench) -> None:
    bench.trained("a")
    for loss in (bench.losses["cross_entropy"], WHOLE):
        one = bench.one_pass("a", loss)
        [forward] = bench.run(replace(one, backward=False))
        norm = bench.backend.optim_step("a", NOTHING)["grad_norm"]
        assert norm == 0, f"after a forward pass the gradient's norm is {norm}"
        [both] = bench.run(one)
        assert np.isclose(forward.metrics["loss:sum"], both.metrics["loss:sum"], rtol=bench.tolerance), (
            f"the loss {loss.name!r} is {forward.metrics} forward and {both.metrics} with a backward pass"
        )
        norm = bench.backend.optim_step("a", NOTHING)["grad_norm"]
        assert norm > 0, "a backward pass accumulated nothing"
        assert bench.backend.optim_step("a", NOTHING)["grad_norm"] == 0, "a step does not clear the gradients"


def models_in_one_call_do_not_meet(bench: Bench) -> None:
    """Three models of different ranks and losses together, then each alone."""
    specs = {"a": LORA, "b": replace(LORA, rank=2, seed=5), "c": replace(LORA, rank=8, train_mlp=False)}
    for number, (model_id, lora) in enumerate(specs.items()):
        bench.trained(model_id, lora, number)
    names = list(bench.losses)
    passes = [bench.one_pass(model_id, bench.losses[names[n % len(names)]]) for n, model_id in enumerate("abcba")]
    passes.append(bench.one_pass("b", WHOLE, (5, 9)))
    together = bench.run(*passes)
    gradients = {model_id: bench.gradients(model_id) for model_id in specs}
    alone = [bench.run(one)[0] for one in passes]
    for this, that in zip(together, alone, strict=True):
        assert np.isclose(this.metrics["loss:sum"], that.metrics["loss:sum"], rtol=bench.tolerance), (
            f"a pass has the loss {this.metrics['loss:sum']} among others and {that.metrics['loss:sum']} alone"
        )
    for model_id in specs:
        bench.same_gradients(gradients[model_id], bench.gradients(model_id))


def what_fails_fails_alone(bench: Bench) -> None:
    bench.trained("a")
    bench.trained("b", seed=3)
    right = bench.one_pass("a", bench.losses["cross_entropy"], (11, 3))
    other = replace(right, model_id="b")
    bench.run(right)
    expected = bench.gradients("a")
    for broken in (*BROKEN, *(replace(loss, batch=True) for loss in BROKEN)):
        bench.run(right)
        wrong = bench.one_pass("a", broken, (4, 6))
        before, failed, after = bench.backend.forward_backward([replace(right, backward=False), wrong, other])
        assert isinstance(failed, LossFailed), f"the loss {broken.name!r} gave {failed!r}, not LossFailed"
        assert f"'{broken.name}' of weaver.testing" in str(failed), f"{failed} does not name the loss and its package"
        assert "data[" in str(failed), f"{failed} does not name the datum"
        for neighbour in (before, after):
            assert isinstance(neighbour, ForwardBackwardResult), (
                f"the pass beside {broken.name!r} failed: {neighbour!r}"
            )
        bench.same_gradients(bench.gradients("a"), expected)
        bench.same_gradients(bench.gradients("b"), _alone(bench, other))


def _alone(bench: Bench, one: Pass) -> dict[str, FloatArray]:
    bench.run(one)
    return bench.gradients(one.model_id)


def every_number_of_a_step_counts(bench: Bench) -> None:
    """Three steps of torch's AdamW, clipped by torch, for each set of numbers."""
    usual = AdamParams(learning_rate=0.01, eps=1e-8)
    settings = [
        usual, replace(usual, learning_rate=0.05), replace(usual, beta1=0.5), replace(usual, beta2=0.5),
        replace(usual, eps=0.1), replace(usual, weight_decay=0.3), replace(usual, grad_clip_norm=0.05),
    ]  # fmt: skip
    for params in settings:
        _three_steps(bench, params)


def _three_steps(bench: Bench, params: AdamParams) -> None:
    state = bench.trained("a")
    reference = TrainingReference(bench.model, state.adapter)
    trained = list(reference.parameters.values())
    optimizer = torch.optim.AdamW(
        trained, params.learning_rate, (params.beta1, params.beta2), params.eps, params.weight_decay
    )
    for _ in range(3):
        one = bench.one_pass("a", bench.losses["cross_entropy"], (9, 5))
        reference.run(one)
        bench.run(one)
        limit = params.grad_clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(trained, limit))
        found = bench.backend.optim_step("a", params)["grad_norm"]
        assert np.isclose(found, norm, rtol=10 * bench.tolerance), f"grad_norm is {found}; before clipping it is {norm}"
        optimizer.step()
    tensors = bench.backend.export_state("a", optimizer=False).adapter.tensors
    for name, parameter in reference.parameters.items():
        moved = np.linalg.norm(parameter.detach().numpy() - state.adapter.tensors[name])
        off = float(np.linalg.norm(tensors[name] - parameter.detach().numpy()) / moved)
        assert off <= 100 * bench.tolerance, f"{name} is off by {off:.1e} of its way after three steps of {params}"
    bench.backend.drop_model("a")


def a_state_goes_on_where_it_was_saved(bench: Bench) -> None:
    bench.trained("a")
    loss, step = bench.losses["cross_entropy"], AdamParams(learning_rate=0.01)
    _steps(bench, "a", [bench.one_pass("a", loss, (9, 5))] * 2, step)
    saved = bench.backend.export_state("a", optimizer=True)
    kept = {name: tensor.copy() for name, tensor in saved.adapter.tensors.items()}
    more = [bench.one_pass("a", loss, (7,)), bench.one_pass("a", loss, (12, 3))]
    _steps(bench, "a", more, step)
    assert all(np.array_equal(kept[name], saved.adapter.tensors[name]) for name in kept), "an exported state changes"
    expected = bench.backend.export_state("a", optimizer=True)
    bench.backend.create_model("b", replace(LORA, seed=9))
    bench.run(replace(more[0], model_id="b"))
    bench.backend.import_state("b", saved)
    assert bench.backend.optim_step("b", NOTHING)["grad_norm"] == 0, "import_state does not clear accumulated gradients"
    bench.backend.import_state("b", saved)
    _steps(bench, "b", [replace(one, model_id="b") for one in more], step)
    found = bench.backend.export_state("b", optimizer=True)
    assert expected.optimizer is not None
    assert found.optimizer is not None, "a state that was asked for with its optimizer has none"
    assert found.optimizer.step == expected.optimizer.step == 4, f"steps are counted as {found.optimizer.step}, not 4"
    _same(found.adapter.tensors, expected.adapter.tensors, bench.tolerance, "weights")
    _same(found.optimizer.tensors, expected.optimizer.tensors, bench.tolerance, "the optimizer's state")
    bench.backend.import_state("b", ModelState(saved.adapter, None))
    cleared = bench.backend.export_state("b", optimizer=True).optimizer
    assert cleared is not None
    assert cleared.step == 0, "a state without an optimizer's leaves the old one there"


def _steps(bench: Bench, model_id: str, passes: Sequence[Pass], params: OptimParams) -> None:
    for one in passes:
        bench.run(one)
        bench.backend.optim_step(model_id, params)


def _same(found: Tensors, expected: Tensors, tolerance: float, what: str) -> None:
    assert found.keys() == expected.keys(), f"{what} have the tensors {sorted(found.keys() ^ expected.keys())} too much"
    for name, wanted in expected.items():
        assert np.allclose(found[name], wanted, rtol=tolerance, atol=tolerance), f"{what}: {name} differs after a load"


def a_state_that_does_not_fit_is_refused(bench: Bench) -> None:
    state = bench.trained("a")
    name = next(iter(state.adapter.tensors))
    lacking = {one: tensor for one, tensor in state.adapter.tensors.items() if one != name}
    try:
        bench.backend.import_state("a", ModelState(replace(state.adapter, tensors=lacking), None))
    except InvalidInput:
        tensors = bench.backend.export_state("a", optimizer=False).adapter.tensors
        _same(tensors, state.adapter.tensors, 0.0, "weights")
    else:
        raise AssertionError(f"a state without {name} is imported as if it were whole")


def an_optimizer_it_lacks_is_refused(bench: Bench) -> None:
    state = bench.trained("a")
    try:
        bench.backend.optim_step("a", DimuonParams(learning_rate=0.01))
    except InvalidInput:
        tensors = bench.backend.export_state("a", optimizer=False).adapter.tensors
        _same(tensors, state.adapter.tensors, 0.0, "weights")


def a_dropped_model_is_gone(bench: Bench) -> None:
    bench.backend.drop_model("never made")
    bench.trained("a")
    bench.run(bench.one_pass("a", bench.losses["cross_entropy"], (5,)))
    bench.backend.drop_model("a")
    bench.backend.drop_model("a")
    bench.backend.create_model("a", LORA)
    tensors = bench.backend.export_state("a", optimizer=False).adapter.tensors
    assert all(not tensors[name].any() for name in tensors if "lora_B" in name), "a dropped model's weights are there"
    assert bench.backend.optim_step("a", NOTHING)["grad_norm"] == 0, "a dropped model's gradients are still there"


CHECKS: Final[Mapping[str, Callable[[Bench], None]]] = {
    check.__name__: check
    for check in (
        a_model_is_described,
        a_new_model_follows_from_its_seed_and_changes_nothing,
        every_loss_agrees_with_peft,
        several_targets_per_token_agree,
        a_loss_that_sees_the_batch_agrees,
        a_temperature_divides_the_logits,
        entropies_are_of_the_whole_distributions,
        a_loss_that_sees_the_batch_gets_its_entropies,
        a_sampling_mask_leaves_what_it_names,
        data_as_long_as_the_context_are_not_cut,
        each_flag_trains_its_layers,
        passes_accumulate,
        a_forward_pass_accumulates_nothing,
        models_in_one_call_do_not_meet,
        what_fails_fails_alone,
        every_number_of_a_step_counts,
        a_state_goes_on_where_it_was_saved,
        a_state_that_does_not_fit_is_refused,
        an_optimizer_it_lacks_is_refused,
        a_dropped_model_is_gone,
    )
}
