"""`check_sampler` holds for the sampler `embedded`, and notices each way to break the contract."""

from dataclasses import replace

import numpy as np
import pytest

from weaver.domain import StopReason, TokenRows
from weaver.registry import load_registry
from weaver.sampler import SampleFuture, SamplerFactory
from weaver.testing import check_sampler
from weaver.testing.reference import END_TOKEN, FAMILIES, VOCABULARY
from weaver.testing.samplers import CHECKS

EMBEDDED = load_registry().sampler("embedded")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_embedded_keeps_the_contract(family):
    check_sampler(EMBEDDED, families=[family])


class Changed:
    """The sampler `embedded` behind something that changes what is asked for or what comes back."""

    def __init__(self, source, request=lambda one: one, result=lambda one: one, **methods):
        self.inner, self.request, self.result = EMBEDDED.open(source), request, result
        for name, method in methods.items():
            setattr(self, name, method)

    def sample(self, request):
        outer, inner = SampleFuture(), self.inner.sample(self.request(request))
        inner.add_done_callback(lambda done: self._pass_on(done, outer))
        return outer

    def _pass_on(self, done, outer):
        if outer.cancelled():
            return
        if done.exception() is not None:
            outer.set_exception(done.exception())
        else:
            outer.set_result(self.result(done.result()))

    def publish(self, model_id, version, adapter):
        self.inner.publish(model_id, version, adapter)

    def forget(self, adapter_id):
        self.inner.forget(adapter_id)

    def close(self):
        self.inner.close()


def params(**changes):
    return {"request": lambda one: replace(one, params=replace(one.params, **changes))}


def sequences(change):
    return {"result": lambda one: replace(one, sequences=tuple(map(change, one.sequences)))}


def without_adapter(request):
    return replace(request, adapter=None, inflight=None)


def half_deaf(request):
    """Whoever listens misses the first sample's tokens."""
    hear = request.listener
    return request if hear is None else replace(request, listener=lambda one: one.index and hear(one))


BROKEN = {
    "greedy_is_the_likeliest_token": params(temperature=1.0),
    "drawn_tokens_have_the_logprobs_they_were_drawn_with": params(top_p=1.0),
    "draws_follow_the_distribution": params(top_k=-1),
    "a_seed_draws_the_same_again": params(seed=None),
    "it_stops_where_it_should": sequences(lambda one: replace(one, stop_reason=StopReason.LENGTH)),
    "stop_tokens_wait_for_min_tokens_or_it_is_refused": params(min_tokens=0),
    "masks_are_what_tokens_were_drawn_among_or_refused": {"request": lambda one: replace(one, sampling_mask=False)},
    "a_listener_hears_what_the_result_says": {"request": half_deaf},
    "prompts_are_scored": {"request": lambda one: replace(one, prompt_logprobs_last_n=None)},
    "targets_of_a_prompt_are_scored_or_refused": {"request": lambda one: replace(one, prompt_targets=None)},
    "alternatives_are_drawn_or_refused": {"request": lambda one: replace(one, prompt_alternatives=0)},
    "adapters_do_not_meet": {"request": without_adapter},
    "an_adapter_that_cannot_be_loaded_fails_its_own_request": {"request": without_adapter},
    "newer_weights_are_followed": sequences(lambda one: replace(one, tokens=np.flip(one.tokens))),
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_sampler_is_told_how(check):
    broken = SamplerFactory("broken", lambda source: Changed(source, **BROKEN[check]))
    with pytest.raises(AssertionError, match=f"the sampler 'broken' breaks its contract:\nllama: {check}: "):
        check_sampler(broken, families=["llama"], only=[check])


def test_every_check_has_a_sampler_that_fails_it():
    others = {"a_forgotten_adapter_can_come_back_and_others_stay", "a_cancelled_request_disturbs_nobody"}
    assert set(CHECKS) == set(BROKEN) | others


def rows_of(change):
    """A sampler that tells changed masks."""

    def changed(one):
        mask = one.sampling_mask
        return one if mask is None else replace(one, sampling_mask=TokenRows.of_lists(change(mask.lists())))

    return sequences(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [[]] * len(rows), "that were left out"),
        (lambda rows: [row and row[:-1] for row in rows], "and is|which lacks"),
        (lambda rows: [row[::-1] for row in rows], "does not ascend"),
        (lambda rows: [row or list(range(VOCABULARY)) for row in rows], "a row is empty"),
        (lambda rows: rows[1:], "not one row for each token"),
    ],
)
def test_a_mask_that_is_not_what_a_token_was_drawn_among_is_noticed(change, said):
    broken = SamplerFactory("broken", lambda source: Changed(source, **rows_of(change)))
    check = "masks_are_what_tokens_were_drawn_among_or_refused"
    with pytest.raises(AssertionError, match=said):
        check_sampler(broken, families=["llama"], only=[check])


def test_a_sampler_that_keeps_more_back_than_asked_is_noticed():
    """The model's end token too, which stops nothing here."""
    more = {"request": lambda one: replace(one, params=with_end(one.params))}

    def with_end(params):
        return replace(params, stop_token_ids=(*params.stop_token_ids, END_TOKEN)) if params.min_tokens else params

    broken = SamplerFactory("broken", lambda source: Changed(source, **more))
    check = "stop_tokens_wait_for_min_tokens_or_it_is_refused"
    with pytest.raises(AssertionError, match="logprobs of drawn tokens are off"):
        check_sampler(broken, families=["llama"], only=[check])


def test_forgetting_what_still_runs_is_noticed():
    class Hasty(Changed):
        """Forgets for good."""

        gone = ()

        def forget(self, adapter_id):
            self.gone = (*self.gone, adapter_id)

        def sample(self, request):
            lost = request.adapter is not None and request.adapter.adapter_id in self.gone
            return super().sample(without_adapter(request) if lost else request)

    check = "a_forgotten_adapter_can_come_back_and_others_stay"
    with pytest.raises(AssertionError, match="after forget an adapter is another"):
        check_sampler(SamplerFactory("broken", Hasty), families=["llama"], only=[check])


def test_a_cancellation_that_hits_others_is_noticed():
    class Crossed(Changed):
        """Cutting one request cuts all."""

        def sample(self, request):
            future = super().sample(replace(request, params=replace(request.params, max_tokens=3)))
            return future

    with pytest.raises(AssertionError, match="cancelling changed another request"):
        check_sampler(
            SamplerFactory("broken", Crossed), families=["llama"], only=["a_cancelled_request_disturbs_nobody"]
        )
