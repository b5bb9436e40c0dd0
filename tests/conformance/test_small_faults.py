"""Each check of a number has a fault that it sees: a server with one field ignored or one formula wrong."""

from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch

from weaver.conformance.catalog import CHECKS
from weaver.conformance.checks import Outcome, run_checks
from weaver.conformance.lab import Lab

MODEL = "tiny/llama"


def load_faults():
    spec = util.spec_from_file_location("conformance_faults", Path(__file__).with_name("faults.py"))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


faults = load_faults()
Wrapped = faults.Wrapped


def step(change):
    """A backend that takes other parameters than it is given."""

    class Fault(Wrapped):
        def optim_step(self, model_id, params):
            return self._inner.optim_step(model_id, change(params))

    return {"wrap_backend": Fault}


def each_pass(change):
    """A backend that runs other passes than it is given."""

    class Fault(Wrapped):
        def forward_backward(self, passes):
            return self._inner.forward_backward([change(one) for one in passes])

    return {"wrap_backend": Fault}


def result(change):
    """A backend that tells other results than it has; `change` sees the pass and the result."""

    class Fault(Wrapped):
        def forward_backward(self, passes):
            return [change(one, found) for one, found in zip(passes, self._inner.forward_backward(passes))]

    return {"wrap_backend": Fault}


def loss(name, change):
    """`change(function)` gives the loss `name` another function."""

    def changed(one):
        if one.loss.name != name:
            return one
        return replace(one, loss=replace(one.loss, function=change(one.loss.function)))

    return each_pass(changed)


def weights(change):
    def changed(function):
        return lambda logprobs, inputs, config: function(logprobs, {"weights": change(inputs["weights"])}, config)

    return loss("cross_entropy", changed)


def gradient(factor):
    """The right value with the gradient times `factor(pass)`."""

    def changed(one):
        def function(logprobs, inputs, config):
            right = one.loss.function(logprobs, inputs, config)
            wrong = right * factor(one)
            return wrong + (right - wrong).detach()

        return replace(one, loss=replace(one.loss, function=function))

    return each_pass(changed)


def request(change):
    """A sampler that draws something else than it is asked for."""

    class Fault(Wrapped):
        def sample(self, asked):
            return self._inner.sample(change(asked))

    return {"wrap_sampler": Fault}


def params(**changes):
    return request(lambda asked: replace(asked, params=replace(asked.params, **changes)))


class ClearsGradients(Wrapped):
    """Every call begins with `zero_grad`."""

    def forward_backward(self, passes):
        for model_id in {one.model_id for one in passes if one.backward}:
            self._inner.import_state(model_id, self._inner.export_state(model_id, optimizer=True))
        return self._inner.forward_backward(passes)


class KeepsGradients(Wrapped):
    """No step ends with `zero_grad`: what was accumulated last comes again."""

    def __init__(self, inner):
        super().__init__(inner)
        self._last = {}

    def forward_backward(self, passes):
        self._last |= {one.model_id: one for one in passes if one.backward}
        return self._inner.forward_backward(passes)

    def optim_step(self, model_id, given):
        metrics = self._inner.optim_step(model_id, given)
        if model_id in self._last:
            self._inner.forward_backward([self._last[model_id]])
        return metrics


class NoBiasCorrection(Wrapped):
    """The first moment as it is; a step's rate is the only thing left to say so with."""

    def __init__(self, inner):
        super().__init__(inner)
        self._steps = {}

    def optim_step(self, model_id, given):
        self._steps[model_id] = self._steps.get(model_id, 0) + 1
        uncorrected = given.learning_rate * (1 - given.beta1 ** self._steps[model_id])
        return self._inner.optim_step(model_id, replace(given, learning_rate=uncorrected))


class RateOfTheFirstStep(Wrapped):
    """An optimizer that is configured once."""

    def __init__(self, inner):
        super().__init__(inner)
        self._rates = {}

    def optim_step(self, model_id, given):
        rate = self._rates.setdefault(model_id, given.learning_rate)
        return self._inner.optim_step(model_id, replace(given, learning_rate=rate))


class OneModelForAll(Wrapped):
    """The adapter that was made last trains on everybody's data."""

    def __init__(self, inner):
        super().__init__(inner)
        self._models = []

    def create_model(self, model_id, lora):
        self._models.append(model_id)
        self._inner.create_model(model_id, lora)

    def drop_model(self, model_id):
        self._models.remove(model_id)
        self._inner.drop_model(model_id)

    def forward_backward(self, passes):
        models = [self._models[-1] if one.backward else one.model_id for one in passes]
        return self._inner.forward_backward([replace(one, model_id=m) for one, m in zip(passes, models)])


class OneSeed(Wrapped):
    def create_model(self, model_id, lora):
        self._inner.create_model(model_id, replace(lora, seed=1))


class LoadsNothing(Wrapped):
    def import_state(self, model_id, state):
        pass


class LoadsNoOptimizer(Wrapped):
    def import_state(self, model_id, state):
        self._inner.import_state(model_id, replace(state, optimizer=None))


class ForgetsTheAdapter(Wrapped):
    def sample(self, asked):
        return self._inner.sample(replace(asked, adapter=None))


def _mean_loss(one, found):
    tokens = sum(len(datum.tokens_T) for datum in one.data)
    return replace(found, metrics={"loss:sum": found.metrics["loss:sum"] / tokens})


def _nosy(one, found):
    """Logprobs that depend on how many data there are."""
    return replace(found, logprobs=tuple(lp + np.float32(0.01 * len(one.data)) for lp in found.logprobs))


def _policy_gradient(function):
    return lambda logprobs, inputs, config: -(logprobs * inputs["advantages"]).sum()


def _with_config(**fixed):
    return lambda function: lambda logprobs, inputs, config: function(logprobs, inputs, {**config, **fixed})


def _clipped_away(function):
    def clipped(logprobs, inputs, config):
        ratio = (logprobs - inputs["logprobs"]).exp()
        kept = (ratio <= config["clip_high_threshold"]).float()
        return -(ratio.detach() * logprobs * inputs["advantages"] * kept).sum()

    return clipped


FAULTS = {
    "weights_scale_the_gradient": weights(lambda w: (w != 0).float()),
    "every_weight_counts_for_its_own_token": weights(lambda w: w.mean().expand_as(w)),
    "negative_weights_push_away": weights(lambda w: w.clamp(min=0)),
    "zero_weights_add_nothing": weights(lambda w: torch.where(w == 0, 1.0, w)),
    "passes_accumulate": {"wrap_backend": ClearsGradients},
    "a_datum_given_twice_counts_twice": gradient(lambda one: 1 / len(one.data)),
    "the_gradient_is_the_losss_own": gradient(lambda one: 0.4),
    "a_forward_leaves_no_gradient": each_pass(lambda one: replace(one, backward=True)),
    "a_step_uses_up_the_gradients": {"wrap_backend": KeepsGradients},
    "data_do_not_see_each_other": result(_nosy),
    "importance_sampling_weighs_by_the_ratio": loss("importance_sampling", _policy_gradient),
    "ppo_clips_at_its_thresholds": loss("ppo", _with_config(clip_low_threshold=0.8, clip_high_threshold=1.2)),
    "cispo_clips_the_ratio_and_keeps_the_gradient": loss("cispo", _clipped_away),
    "dro_pulls_back_to_the_sampler": loss("dro", _with_config(beta=0.0)),
    "the_value_of_a_loss_is_its_formulas": result(_mean_loss),
    "the_loss_is_a_sum_over_tokens": result(_mean_loss),
    "metrics_are_named_with_their_reduction": result(lambda one, found: replace(found, metrics={"loss": 1.0})),
    "a_learning_rate_of_zero_changes_nothing": step(lambda p: replace(p, learning_rate=p.learning_rate or 1e-2)),
    "the_learning_rate_is_the_steps_own": {"wrap_backend": RateOfTheFirstStep},
    "beta1_averages_the_gradients": step(lambda p: replace(p, beta1=0.0)),
    "beta2_averages_the_squares": step(lambda p: replace(p, beta2=0.0)),
    "moments_are_corrected_for_their_beginning": {"wrap_backend": NoBiasCorrection},
    "eps_is_added_to_the_root": step(lambda p: replace(p, eps=1e6)),
    "weight_decay_shrinks_by_rate_times_decay": step(
        lambda p: replace(p, weight_decay=p.weight_decay / (p.learning_rate or 1.0))
    ),
    "weight_decay_is_no_gradient": step(lambda p: replace(p, weight_decay=p.weight_decay / (1 + p.eps))),
    "grad_clip_norm_bounds_the_gradient": step(lambda p: replace(p, grad_clip_norm=0.0)),
    "gradients_are_the_models_own": {"wrap_backend": OneModelForAll},
    "a_seed_decides_the_first_weights": {"wrap_backend": OneSeed},
    "a_snapshot_has_the_updates_before_it": {"wrap_sampler": ForgetsTheAdapter},
    "saved_sampler_weights_are_the_models": {"wrap_sampler": ForgetsTheAdapter},
    "prompt_logprobs_are_the_trainers": {"wrap_sampler": ForgetsTheAdapter},
    "a_saved_state_has_the_weights": {"wrap_backend": LoadsNothing},
    "a_resumed_optimizer_goes_on": {"wrap_backend": LoadsNoOptimizer},
    "loading_replaces_weights_and_drops_gradients": {"wrap_backend": LoadsNothing},
    "max_tokens_is_the_length": params(max_tokens=7),
    "sampled_logprobs_are_the_trainers": params(temperature=2.0),
    "draws_follow_the_probabilities": params(temperature=0.2),
    "a_seed_repeats_a_sample": params(seed=None),
    "temperature_zero_is_greedy": params(temperature=1.0),
    "top_k_and_top_p_narrow_the_draw": params(top_k=-1),
    "a_stop_token_ends_a_sample": params(stop_token_ids=()),
    "a_retried_sample_is_drawn_once": {"service_class": faults.DrawsRetriesAgain},
    "no_prompt_logprobs_unless_asked": request(lambda asked: replace(asked, prompt_logprobs=True)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_small_fault_is_seen(serving, name):
    [check] = [check for check in CHECKS if check.name == name]
    with serving(**FAULTS[name]) as url:
        [found] = run_checks([check], Lab(url, "tml-test", MODEL))
    assert found.outcome is Outcome.FAILED
    assert "Error" not in found.detail.partition(":")[0] or name == "metrics_are_named_with_their_reduction"
