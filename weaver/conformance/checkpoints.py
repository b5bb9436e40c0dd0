"""What is saved, and what comes back."""

import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import A, B, Lab, look, probe_scores, run, waited
from weaver.conformance.recipes import Step, passes, plain

GROUP = "checkpoints"


def _save(lab: Lab, model: tinker.TrainingClient) -> str:
    return str(waited(model.save_state(lab.new_name())).path)


def paths_say_where_they_belong(lab: Lab) -> None:
    """The SDK and its tools take a path apart: run, kind and name."""
    with lab.session() as session:
        model, name = session.model(), lab.new_name()
        state = waited(model.save_state(name)).path
        sampler = waited(model.save_weights_for_sampler(name)).path
        expected = [f"tinker://{model.model_id}/{kind}/{name}" for kind in ("weights", "sampler_weights")]
    require([state, sampler] == expected, f"the paths are {[state, sampler]} and should be {expected}")


def a_saved_state_has_the_weights(lab: Lab) -> None:
    """A run that is resumed elsewhere must go on from what was learned."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        path = _save(lab, model)
    with lab.session() as session:
        resumed = session.resumed(path)
        found, info = look(resumed), resumed.get_info()
    lab.same(found, lab.after(passes(A), plain(lab.rate)), "a model from a saved state, against the one that was saved")
    require(info.model_data.model_name == lab.model, f"a resumed model says its base is {info.model_data.model_name!r}")


def a_resumed_optimizer_goes_on(lab: Lab) -> None:
    """With its optimizer a run must continue like one that never stopped: momentum, second moments and their count."""
    rate = plain(lab.rate).learning_rate
    first, second = (passes(A), Step(rate, beta1=0.8)), (passes(B), Step(rate, beta1=0.8))
    with lab.session() as session:
        model = session.model()
        run(model, first)
        path = _save(lab, model)
        resumed = session.resumed(path, optimizer=True)
        run(resumed, second)
        found = look(resumed)
    expected = lab.after(*first, *second)
    lab.same(found, expected, "two steps with a save and a resume between, against two steps")
    fresh = lab.after(passes(A), plain(lab.rate), passes(B), plain(lab.rate))
    lab.differ(expected, fresh, "two steps with momentum, against two without")


def weights_alone_begin_a_new_optimizer(lab: Lab) -> None:
    """The next stage of training asks for the weights only; old momentum must not leak into it."""
    rate = plain(lab.rate).learning_rate
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), Step(rate, beta1=0.8)])
        resumed = session.resumed(_save(lab, model))
        run(resumed, [passes(B), Step(rate, beta1=0.8)])
        found = look(resumed)
    expected = lab.after(passes(A), plain(lab.rate), passes(B), plain(lab.rate))
    lab.same(found, expected, "a step after resuming with weights only, against a first step")


def a_saved_state_never_changes(lab: Lab) -> None:
    """A checkpoint is what it was when it was saved, whatever its model does later."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        path = _save(lab, model)
        run(model, [passes(B), plain(lab.rate)])
        _save(lab, model)
        found = look(session.resumed(path))
    lab.same(found, lab.after(passes(A), plain(lab.rate)), "a state that was saved before more training")


def loading_replaces_weights_and_drops_gradients(lab: Lab) -> None:
    """Gradients belong to the weights they were computed for."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        path = _save(lab, model)
        run(model, [passes(B), plain(lab.rate), passes(B)])
        waited(model.load_state(path))
        lab.same(look(model), lab.after(passes(A), plain(lab.rate)), "a model after load_state")
        run(model, [plain(lab.rate)])
        lab.same(look(model), lab.after(passes(A), plain(lab.rate)), "a step after load_state, without a pass")


def overwriting_replaces_a_state(lab: Lab) -> None:
    """`overwrite=True` keeps one rolling checkpoint; what it returns must be the newest."""
    with lab.session() as session:
        model, name = session.model(), lab.new_name()
        waited(model.save_state(name))
        run(model, [passes(A), plain(lab.rate)])
        path = waited(model.save_state(name, overwrite=True)).path
        found = look(session.resumed(path))
    lab.same(found, lab.after(passes(A), plain(lab.rate)), "a state that was overwritten")


def saved_sampler_weights_are_the_models(lab: Lab) -> None:
    """What is deployed must be what was trained, also for another session."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        path = waited(model.save_weights_for_sampler(lab.new_name())).path
    with lab.session() as session:
        found = probe_scores(session.sampler(path))
    expected = lab.after(passes(A), plain(lab.rate))
    lab.agree(found, expected, "saved sampler weights, against the model")
    lab.differ(found, lab.start, "saved sampler weights, against a new model")


CHECKS = (
    paths_say_where_they_belong,
    a_saved_state_has_the_weights,
    a_resumed_optimizer_goes_on,
    weights_alone_begin_a_new_optimizer,
    a_saved_state_never_changes,
    loading_replaces_weights_and_drops_gradients,
    overwriting_replaces_a_state,
    saved_sampler_weights_are_the_models,
)
