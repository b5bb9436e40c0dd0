"""`check_backend` holds for the backend `peft`, and notices each way to break the contract."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from weaver_peft.logprobs import LossGradients
from weaver_peft.trainer import PeftBackend, load_base_model

from weaver.backend import Pass
from weaver.domain import AdamParams, Datum
from weaver.errors import InvalidInput, WeaverError
from weaver.evaluation import evaluate
from weaver.registry import load_registry
from weaver.testing import check_backend
from weaver.testing.backends import CHECKS
from weaver.testing.bench import ENTROPIC
from weaver.testing.reference import FAMILIES

PEFT = load_registry().backend("peft")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backend_peft_keeps_the_contract(family):
    check_backend(PEFT, families=[family])


def broken_by(**methods):
    """The backend `peft` with other methods: a factory."""
    return replace(PEFT, name="broken", open=lambda source: type("Broken", (PeftBackend,), methods)(load(source)))


def load(source):
    return load_base_model(source)


def on_passes(change):
    """`forward_backward` on changed passes."""

    def forward_backward(self, passes):
        return PeftBackend.forward_backward(self, [change(one) for one in passes])

    return broken_by(forward_backward=forward_backward)


def on_params(change):
    def optim_step(self, model_id, params):
        return PeftBackend.optim_step(self, model_id, change(params))

    return broken_by(optim_step=optim_step)


def cut(one):
    data = [
        replace(
            datum,
            tokens_T=datum.tokens_T[:100],
            loss_fn_inputs={name: array[:100] for name, array in datum.loss_fn_inputs.items()},
        )
        for datum in one.data
    ]
    return replace(one, data=data)


def unmasked(one):
    return replace(one, data=[replace(datum, sampling_mask=None) for datum in one.data])


def half_masked(one):
    """As a backend does that takes the first datum's for all."""
    return replace(one, data=[one.data[0], *unmasked(one).data[1:]])


def all_fail(self, passes):
    results = PeftBackend.forward_backward(self, passes)
    failed = [one for one in results if isinstance(one, WeaverError)]
    return [failed[0]] * len(results) if failed else results


def piecewise(self, passes):
    """Takes a batch loss on one datum at a time."""
    single = [replace(one, data=[datum]) for one in passes for datum in one.data]
    results = PeftBackend.forward_backward(self, single)
    merged, start = [], 0
    for one in passes:
        mine = results[start : start + len(one.data)]
        start += len(one.data)
        failed = [result for result in mine if isinstance(result, WeaverError)]
        loss = sum(result.metrics["loss:sum"] for result in mine) if not failed else 0
        found = mine[0] if failed else replace(mine[0], logprobs=sum((r.logprobs for r in mine), ()))
        merged.append(failed[0] if failed else replace(found, metrics={"loss:sum": loss}, outputs=()))
    return merged


def at(**config):
    """Another config, where the loss has these fields."""

    def change(one):
        fields = {field.name for field in one.loss.config}
        return replace(one, config={**one.config, **{name: value for name, value in config.items() if name in fields}})

    return change


def entropies_from_afar(self, passes):
    """Says what the entropies are, and forgets their gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossGradients, "put", lambda self, rows, logprobs, _: PUT(self, rows, logprobs, None))
        return PeftBackend.forward_backward(self, passes)


def model_logprobs(self, passes):
    """Trains at the temperature and tells the logprobs at 1."""
    results = PeftBackend.forward_backward(self, passes)
    plain = PeftBackend.forward_backward(self, [replace(at(temperature=1.0)(one), backward=False) for one in passes])
    return [
        one if isinstance(one, WeaverError) else replace(one, logprobs=p.logprobs) for one, p in zip(results, plain)
    ]


def shared_gradients(self, passes):
    """Everything goes to the first model."""
    first = passes[0].model_id
    return PeftBackend.forward_backward(self, [replace(one, model_id=first) for one in passes])


def forgetful(self, model_id, *, optimizer):
    state = PeftBackend.export_state(self, model_id, optimizer=optimizer)
    return replace(state, optimizer=None if state.optimizer is None else replace(state.optimizer, step=0, tensors={}))


def lenient(self, model_id, state):
    own = PeftBackend.export_state(self, model_id, optimizer=False).adapter.tensors
    tensors = {name: state.adapter.tensors.get(name, np.zeros_like(tensor)) for name, tensor in own.items()}
    PeftBackend.import_state(self, model_id, replace(state, adapter=replace(state.adapter, tensors=tensors)))


def overwriting(self, passes):
    for one in passes:
        self._models[one.model_id].gradients.clear()
    return PeftBackend.forward_backward(self, passes)


def unseeded(self, model_id, lora):
    seed = np.random.default_rng().integers(1 << 30)
    PeftBackend.create_model(self, model_id, replace(lora, seed=int(seed)))


PUT = LossGradients.put
BROKEN = {
    "every_loss_agrees_with_peft": on_passes(
        lambda one: replace(one, config={key: 2 * value for key, value in one.config.items()})
    ),
    "data_as_long_as_the_context_are_not_cut": on_passes(cut),
    "a_forward_pass_accumulates_nothing": on_passes(lambda one: replace(one, backward=True)),
    "a_loss_that_sees_the_batch_agrees": broken_by(forward_backward=piecewise),
    "a_temperature_divides_the_logits": on_passes(at(temperature=1.0)),
    "entropies_are_of_the_whole_distributions": broken_by(forward_backward=entropies_from_afar),
    "a_loss_that_sees_the_batch_gets_its_entropies": broken_by(forward_backward=entropies_from_afar),
    "a_sampling_mask_leaves_what_it_names": on_passes(unmasked),
    "models_in_one_call_do_not_meet": broken_by(forward_backward=shared_gradients),
    "what_fails_fails_alone": broken_by(forward_backward=all_fail),
    "a_state_goes_on_where_it_was_saved": broken_by(export_state=forgetful),
    "a_state_that_does_not_fit_is_refused": broken_by(import_state=lenient),
    "passes_accumulate": broken_by(forward_backward=overwriting),
    "a_new_model_follows_from_its_seed_and_changes_nothing": broken_by(create_model=unseeded),
    "a_dropped_model_is_gone": broken_by(drop_model=lambda self, model_id: self._models[model_id]),
    "a_model_is_described": replace(
        PEFT, name="broken", describe=lambda source: replace(PEFT.describe(source), context_length=7)
    ),
}
FIELDS = [
    {"learning_rate": 0.011}, {"beta1": 0.8}, {"beta2": 0.9}, {"eps": 1e-3}, {"weight_decay": 0.0},
    {"grad_clip_norm": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_backend_is_told_how(check):
    with pytest.raises(AssertionError, match=f"the backend 'broken' breaks its contract:\nllama: {check}: "):
        check_backend(BROKEN[check], families=["llama"], only=[check])


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (broken_by(forward_backward=model_logprobs), "a_temperature_divides_the_logits"),
        (on_passes(at(temperature=1.3)), "a_temperature_divides_the_logits"),
        (on_passes(at(temperature=1.0)), "entropies_are_of_the_whole_distributions"),
        (on_passes(at(entropy_coeff=0.0)), "entropies_are_of_the_whole_distributions"),
        (on_passes(at(entropy_coeff=0.5)), "entropies_are_of_the_whole_distributions"),
        (broken_by(forward_backward=piecewise), "a_loss_that_sees_the_batch_gets_its_entropies"),
        (on_passes(half_masked), "a_sampling_mask_leaves_what_it_names"),
        (on_passes(at(temperature=1.0)), "a_sampling_mask_leaves_what_it_names"),
        (broken_by(forward_backward=entropies_from_afar), "a_sampling_mask_leaves_what_it_names"),
    ],
)
def test_other_ways_to_compute_temperature_entropy_and_masks_wrongly_are_noticed(broken, check):
    with pytest.raises(AssertionError, match=f"llama: {check}: "):
        check_backend(broken, families=["llama"], only=[check])


def test_a_backend_that_knows_nothing_of_entropies_refuses_them_by_name():
    one = Pass("m", [Datum(np.array([3]), {"target_tokens": np.array([4]), "per_token": np.ones(1, np.float32)})],
               ENTROPIC, ENTROPIC.effective_config({"entropy_coeff": 0.1}), backward=True)  # fmt: skip
    with pytest.raises(InvalidInput, match="the loss 'check_entropy' wants entropies by its config, and this backend"):
        evaluate(one, 0, torch.zeros(1))


def test_a_backend_that_says_it_heeds_no_masks_is_given_none():
    refusing = replace(on_passes(unmasked), sampling_masks=False)
    check_backend(refusing, families=["llama"], only=["a_sampling_mask_leaves_what_it_names"])


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: next(iter(field)))
def test_a_step_that_leaves_out_a_number_is_noticed(field):
    probing = 1e9

    def change(params: AdamParams) -> AdamParams:
        return params if getattr(params, "eps", probing) == probing else replace(params, **field)

    with pytest.raises(AssertionError, match="every_number_of_a_step_counts: "):
        check_backend(on_params(change), families=["llama"], only=["every_number_of_a_step_counts"])


def test_a_check_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"there are no checks \['none'\]; there are: a_model_is_described, "):
        check_backend(PEFT, only=["none"])


def test_a_backend_without_an_optimizer_may_refuse_it():
    def optim_step(self, model_id, params):
        if not isinstance(params, AdamParams):
            raise InvalidInput("the backend 'broken' steps with 'adamw' only")
        return PeftBackend.optim_step(self, model_id, params)

    check_backend(broken_by(optim_step=optim_step), families=["llama"], only=["an_optimizer_it_lacks_is_refused"])


def test_every_check_has_a_backend_that_fails_it():
    """But for those that share what they look at with one that has."""
    shared = {
        "several_targets_per_token_agree", "each_flag_trains_its_layers", "every_number_of_a_step_counts",
        "an_optimizer_it_lacks_is_refused",
    }  # fmt: skip
    assert set(CHECKS) == set(BROKEN) | shared
