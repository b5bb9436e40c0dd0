"""Faults of what is computed: a backend or a sampler with one field ignored or one formula wrong."""

from dataclasses import replace

import conformance_faults as faults
import numpy as np
import torch
from conformance_faults import (
    ClearsGradients,
    ForgetsTheAdapter,
    KeepsGradients,
    LoadsNoOptimizer,
    LoadsNothing,
    Mistakes,
    NoBiasCorrection,
    OneAdapter,
    OneModelForAll,
    OneSeed,
    RateOfTheFirstStep,
    SavingClearsGradients,
    Tells,
    Wrapped,
)

from weaver.domain import AdamParams, DimuonParams


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


def tells(change):
    """A sampler that tells something else than it has drawn."""
    return {"wrap_sampler": lambda sampler: Tells(sampler, change)}


def loads(which):
    return {"wrap_backend": lambda backend: Mistakes(backend, which)}


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


def _centred(function):
    def normalised(logprobs, inputs, config):
        advantages = inputs["advantages"]
        return function(logprobs, {**inputs, "advantages": advantages - advantages.mean()}, config)

    return normalised


def _halved_if_custom(one):
    def halved(logprobs, inputs, config):
        return one.loss.function(logprobs, {**inputs, "weights": inputs["weights"] / 2}, config)

    return replace(one, loss=replace(one.loss, function=halved)) if one.loss.name.startswith("custom") else one


def _over_all_tokens(function):
    def unmasked(logprobs, inputs, config):
        mask = torch.ones_like(inputs["sequence_ratio_mask"])
        return function(logprobs, {**inputs, "sequence_ratio_mask": mask}, config)

    return unmasked


def _without_orthogonalising(given):
    if isinstance(given, DimuonParams):
        return AdamParams(given.learning_rate * 1e6, beta1=given.beta1, beta2=0.0, eps=1e6)
    return given


def _with_momentum(given):
    return replace(given, beta1=0.9) if isinstance(given, DimuonParams) else given


def _scaled(asked, found):
    if found.prompt_logprobs_n is None or not asked.params.temperature:
        return found
    return replace(found, prompt_logprobs_n=found.prompt_logprobs_n / np.float32(asked.params.temperature))


def _worst_first(_, found):
    top = found.topk_prompt_logprobs
    if top is None:
        return found
    turned = replace(top, token_ids_nk=top.token_ids_nk[:, ::-1].copy(), logprobs_nk=top.logprobs_nk[:, ::-1].copy())
    return replace(found, topk_prompt_logprobs=turned)


def _unnormalised(_, found):
    def lower(one):
        top = one.top_logprobs
        return one if top is None else replace(one, top_logprobs=replace(top, logprobs_nk=top.logprobs_nk - 1))

    return replace(found, sequences=tuple(lower(one) for one in found.sequences))


def _a_row_later(_, found):
    told = found.target_logprobs
    if told is None:
        return found
    columns = told.targets.shape[1]
    return replace(found, target_logprobs=replace(told, logprobs_c=np.roll(told.logprobs_c, columns)))


def _logprobs_of_others(_, found):
    told = found.prompt_alternatives
    if told is None:
        return found
    return replace(found, prompt_alternatives=replace(told, logprobs_mk=np.roll(told.logprobs_mk, 1, axis=0)))


def live_slot(folder):
    fault = faults.SharesTheLiveSlot(folder)
    return {"wrap_backend": fault.backend, "wrap_sampler": fault.sampler}


def newest_for_the_base(folder):
    fault = faults.TakesTheNewestForTheBase(folder)
    return {"wrap_backend": fault.backend, "wrap_sampler": fault.sampler}


FAULTS = {
    "logprobs_have_the_shape_of_the_targets": result(
        lambda one, found: replace(found, logprobs=tuple(lp.reshape(len(lp), -1)[:, 0] for lp in found.logprobs))
    ),
    "several_targets_per_token_add_up": weights(lambda w: w if w.ndim == 1 else w * w.new_tensor([1.0, 0.0])),
    "policy_losses_on_policy_are_cross_entropy": loss("cispo", _centred),
    "gspo_weighs_by_the_sequences_ratio": loss("gspo", _over_all_tokens),
    "gspo_clips_the_sequences_ratio": loss("gspo", _with_config(clip_high_threshold=1e9)),
    "stable_reinforce_on_policy_is_the_policy_gradient": loss(
        "stable_reinforce", _with_config(clip_high_threshold=0.5)
    ),
    "a_custom_loss_on_the_server_is_the_clients": each_pass(_halved_if_custom),
    "dimuon_steps_by_the_rate_alone": step(_without_orthogonalising),
    "dimuon_remembers_by_its_beta1": step(_with_momentum),
    "training_one_model_leaves_another": {"wrap_backend": OneAdapter},
    "decay_of_one_model_leaves_others": {"wrap_backend": faults.DecaysEveryAdapter},
    "a_saved_snapshot_never_changes": live_slot,
    "a_nameless_snapshot_never_changes": live_slot,
    "the_base_model_stays_what_it_is": newest_for_the_base,
    "sampling_and_saving_leave_gradients_alone": {"wrap_backend": SavingClearsGradients},
    "as_many_samples_as_asked": tells(
        lambda asked, found: replace(found, sequences=found.sequences[:1] * len(found.sequences))
    ),
    "a_stop_string_ends_a_sample": params(stop_strings=()),
    "the_top_tokens_beside_a_draw_are_its_best": tells(_unnormalised),
    "no_top_tokens_unless_asked": request(lambda asked: replace(asked, topk_sample_logprobs=4)),
    "cached_prompt_tokens_are_the_prompts": tells(lambda asked, found: replace(found, cached_prompt_tokens=1000)),
    "one_logprob_per_prompt_token": {"wrap_sampler": faults.loses_a_prompt_logprob},
    "prompt_logprobs_do_not_depend_on_what_is_drawn": tells(_scaled),
    "the_top_tokens_of_a_position_are_its_best": tells(_worst_first),
    "named_tokens_are_scored_at_their_positions": tells(_a_row_later),
    "a_prompts_end_alone_can_be_scored": request(
        lambda asked: replace(asked, prompt_logprobs_last_n=asked.prompt_logprobs_last_n and 2)
    ),
    "alternatives_to_a_prompt_have_their_logprobs": tells(_logprobs_of_others),
    "weights_alone_begin_a_new_optimizer": loads(
        lambda saved, asked: asked if asked.optimizer else replace(asked, optimizer=saved[-1].optimizer)
    ),
    "a_saved_state_never_changes": loads(lambda saved, asked: replace(asked, adapter=saved[-1].adapter)),
    "overwriting_replaces_a_state": loads(lambda saved, asked: replace(asked, adapter=saved[0].adapter)),
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
    "draws_follow_the_probabilities": request(
        lambda asked: replace(asked, params=replace(asked.params, temperature=asked.params.temperature / 5))
    ),
    "a_seed_repeats_a_sample": params(seed=None),
    "temperature_zero_is_greedy": params(temperature=1.0),
    "top_k_and_top_p_narrow_the_draw": params(top_k=-1),
    "a_stop_token_ends_a_sample": params(stop_token_ids=()),
    "no_prompt_logprobs_unless_asked": request(lambda asked: replace(asked, prompt_logprobs=True)),
}
