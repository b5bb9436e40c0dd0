"""Snapshots never change, and models have nothing of each other."""

import time
from collections.abc import Callable

import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import (
    SEED,
    VISIBLE,
    A,
    B,
    Lab,
    Session,
    distance,
    look,
    probe_scores,
    run,
    scores,
    snapshot,
    submitted,
    waited,
)
from weaver.conformance.recipes import Array, Pass, Step, passes, plain

GROUP = "snapshots and isolation"

UPDATE_SECONDS = 5.0
"""How long a save may take to reach the inflight samplers that are there already."""

PROMPT = tinker.ModelInput.from_ints(list(A.tokens))


def training_one_model_leaves_another(lab: Lab) -> None:
    """Many models share one base model; a step on one must not be felt by the next tenant."""
    with lab.session() as session:
        one, other = session.model(), session.model(SEED + 1)
        run(other, [passes(A), plain(lab.rate)])
        before = look(other)
        run(one, [passes(B), plain(lab.rate), passes(A), plain(lab.rate)])
        lab.unchanged(look(other), before, "a model, after another one was trained")


def decay_of_one_model_leaves_others(lab: Lab) -> None:
    """Weight decay needs no gradient, so a server that steps all adapters at once would shrink idle ones."""
    with lab.session() as session:
        one, idle = session.model(), session.model(SEED + 1)
        run(idle, [passes(A), plain(lab.rate)])
        before = look(idle)
        lab.differ(before, lab.start, "a trained model, against a new one")
        run(one, [passes(B), Step(0.5, weight_decay=1.0)])
        lab.unchanged(look(idle), before, "an idle model, after a step with weight decay on another one")


def gradients_are_the_models_own(lab: Lab) -> None:
    """Two tenants' passes may run as one batch; each must train on its own data."""
    with lab.session() as session:
        models = [session.model(), session.model()]
        recipes = [(passes(A), plain(lab.rate)), (passes(B), plain(lab.rate))]
        pairs = list(zip(models, recipes, strict=True))
        futures = [submitted(model, recipe[place]) for place in range(2) for model, recipe in pairs]
        for future in futures:
            waited(future)
        found = [look(model) for model in models]
    for one, recipe in zip(found, recipes, strict=True):
        lab.same(one, lab.after(*recipe), "a model trained beside another, against alone")


def a_seed_decides_the_first_weights(lab: Lab) -> None:
    """Runs are repeated by their seed, and different seeds are how luck is told from skill."""
    recipe: tuple[Pass | Step, ...] = (passes(A), plain(lab.rate))
    expected = lab.after(*recipe)
    with lab.session() as session:
        model = session.model()
        run(model, recipe)
        found = look(model)
    lab.same(found, expected, "a step from the same seed")
    same, other = (distance(one, expected) for one in (found, lab.after(*recipe, seed=SEED + 1)))
    require(other > 2 * same, f"another seed moves the logprobs by {other:.3g}, the same one again by {same:.3g}")


def _snapshot_stays(lab: Lab, take: Callable[[Session, tinker.TrainingClient], tinker.SamplingClient]) -> None:
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        sampler = take(session, model)
        before = probe_scores(sampler)
        lab.agree(before, look(model), "a snapshot, against its model")
        run(model, [passes(A.weighted(-1), B), plain(lab.rate)])
        lab.unchanged(probe_scores(sampler), before, "a snapshot, after its model was trained on")
        lab.differ(probe_scores(snapshot(model)), before, "a new snapshot, against the old one")
        lab.unchanged(probe_scores(sampler), before, "a snapshot, after a newer one was made")


def a_saved_snapshot_never_changes(lab: Lab) -> None:
    """A policy that changes while it is sampled from makes every logged logprob wrong."""

    def take(session: Session, model: tinker.TrainingClient) -> tinker.SamplingClient:
        return session.sampler(waited(model.save_weights_for_sampler(lab.new_name())).path)

    _snapshot_stays(lab, take)


def a_nameless_snapshot_never_changes(lab: Lab) -> None:
    """Reinforcement loops make one per update, and old ones are still being sampled from."""
    _snapshot_stays(lab, lambda _, model: snapshot(model))


def inflight_samplers_follow_the_newest_save(lab: Lab) -> None:
    """Asynchronous loops sample on while they train; old clients must get the new weights, and snapshots must not."""
    with lab.session() as session:
        model = session.model()
        first, kept = _inflight(model), snapshot(model)
        before = probe_scores(first)
        lab.agree(before, look(model), "an inflight sampler, against its model")
        run(model, [passes(A), plain(lab.rate)])
        second, trained = _inflight(model), look(model)
        lab.differ(trained, before, "a model after a step, against before")
        lab.agree(probe_scores(second), trained, "an inflight sampler right after its save, against its model")
        found = _once_updated(first, before)
        lab.agree(found, trained, f"an older inflight sampler {UPDATE_SECONDS:g} s after a newer save")
        lab.unchanged(probe_scores(kept), before, "a snapshot, after its model's inflight samplers were updated")


def _inflight(model: tinker.TrainingClient) -> tinker.SamplingClient:
    return waited(model.save_weights_and_get_sampling_client(kind="inflight"))


def _once_updated(sampler: tinker.SamplingClient, before: Array) -> Array:
    """The sampler's logprobs when they are others than `before`; the last ones when they stay."""
    give_up = time.monotonic() + UPDATE_SECONDS
    while True:
        found = probe_scores(sampler)
        if distance(found, before) > VISIBLE or time.monotonic() > give_up:
            return found


def the_base_model_stays_what_it_is(lab: Lab) -> None:
    """It is everybody's reference, for KL penalties among others."""
    with lab.session() as session:
        sampler, model = session.sampler(), session.model()
        before = scores(sampler, A.tokens)
        run(model, [passes(A), plain(lab.rate)])
        snapshot(model)
        lab.unchanged(scores(sampler, A.tokens)[1:], before[1:], "the base model, after a model was trained")  # type: ignore[arg-type]
        lab.agree(probe_scores(sampler), lab.start, "the base model, against a new adapter")


def sampling_and_saving_leave_gradients_alone(lab: Lab) -> None:
    """Snapshots and samples are taken in the middle of a batch."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A)])
        waited(model.save_state(lab.new_name()))
        sampler = snapshot(model)
        waited(sampler.sample(PROMPT, 2, tinker.SamplingParams(max_tokens=3, stop=[])))
        run(model, [plain(lab.rate)])
        found = look(model)
    expected = lab.after(passes(A), plain(lab.rate))
    lab.same(found, expected, "a step after saving and sampling between pass and step")


CHECKS = (
    training_one_model_leaves_another,
    decay_of_one_model_leaves_others,
    gradients_are_the_models_own,
    a_seed_decides_the_first_weights,
    a_saved_snapshot_never_changes,
    a_nameless_snapshot_never_changes,
    inflight_samplers_follow_the_newest_save,
    the_base_model_stays_what_it_is,
    sampling_and_saving_leave_gradients_alone,
)
