"""The sampler's logprobs against the trainer's, of the same tokens by the same weights, without being asked for."""

from dataclasses import replace

import httpx
import numpy as np
import pytest
import tinker

from weaver.backend import ModelSource
from weaver.registry import load_registry
from weaver.sampler import SamplerFactory

LLAMA = "tiny/llama"
PROMPT = [5, 6, 7, 8]
MEAN, MAX = "sampler_mismatch:mean", "sampler_mismatch:max"


class WithoutAdapter:
    """A sampler with a fault: it draws from the base model whatever snapshot it is asked for."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def sample(self, request):
        return self._inner.sample(replace(request, adapter=None))


def faulty_registry():
    registry = load_registry()
    embedded = registry.sampler("embedded")

    def open_faulty(source: ModelSource):
        return WithoutAdapter(embedded.open(source))

    return replace(registry, samplers={**registry.samplers, "faulty": SamplerFactory("faulty", open_faulty)})


@pytest.fixture
def watched(server_class, folders, tmp_path):
    """A server that compares every sequence."""
    running = server_class(folders, tmp_path / "data", mismatch_share=1.0)
    yield running
    running.stop()


def learner(client, data):
    """A training client whose adapter is far from its beginning."""
    model = client.create_lora_training_client(LLAMA, rank=4, seed=7).result()
    for _ in range(3):
        model.forward_backward(data.supervised(9, 5), "cross_entropy").result()
        model.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
    return model


def draw(model, number=3, **params):
    sampler = model.save_weights_and_get_sampling_client()
    params = tinker.SamplingParams(max_tokens=6, seed=1, **params)
    return sampler.sample(tinker.ModelInput.from_ints(PROMPT), number, params).result().sequences


def datum(sequence):
    """A drawn sequence as reinforcement learning trains on it."""
    tokens, drawn = PROMPT + sequence.tokens, len(sequence.tokens)
    padding = [0.0] * (len(PROMPT) - 1)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tokens[1:],
            "logprobs": padding + list(sequence.logprobs),
            "advantages": padding + [1.0] * drawn,
        },
    )


def metrics(model, sequences, loss="importance_sampling"):
    return model.forward_backward([datum(one) for one in sequences], loss).result().metrics


def page(server, model):
    return server.service.archive.run(model.model_id).mismatch


def test_what_is_trained_on_is_compared_with_what_was_drawn(watched, data):
    with watched.client() as client:
        model = learner(client, data)
        sequences = draw(model)
        result = model.forward_backward([datum(one) for one in sequences], "importance_sampling").result()
        ours = [output["logprobs"].to_numpy()[len(PROMPT) - 1 :] for output in result.loss_fn_outputs]
        differences = np.abs(np.concatenate(ours) - np.concatenate([one.logprobs for one in sequences]))
        assert result.metrics[MEAN] == pytest.approx(differences.mean(), abs=1e-9)
        assert result.metrics[MAX] == pytest.approx(differences.max(), abs=1e-9)
        assert 0 <= result.metrics[MAX] < 1e-4
        found = page(watched, model)
        assert (found.sequences, found.tokens) == (3, len(differences))
        assert found.maximum == pytest.approx(result.metrics[MAX])


def test_the_runs_page_tells_it_and_the_sdk_reads_the_page(watched, data):
    with watched.client() as client:
        model = learner(client, data)
        metrics(model, draw(model, 2))
        url = f"{watched.url}/api/v1/training_runs/{model.model_id}"
        body = httpx.get(url, headers={"X-API-Key": "tml-test"}).json()
        assert body["sampler_mismatch"].keys() == {"mean", "max", "sequences", "tokens"}
        assert body["sampler_mismatch"]["sequences"] == 2
        assert watched.rest().get_training_run(model.model_id).result().training_run_id == model.model_id


def test_what_was_drawn_by_older_weights_is_not_compared(watched, data):
    with watched.client() as client:
        model = learner(client, data)
        sequences = draw(model)
        model.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
        assert MEAN not in metrics(model, sequences)
        assert page(watched, model) is None


@pytest.mark.parametrize("params", [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_logprobs_of_a_changed_distribution_are_not_compared(watched, data, params):
    with watched.client() as client:
        model = learner(client, data)
        assert MEAN not in metrics(model, draw(model, **params))


def test_logprobs_that_the_trainer_scales_are_not_compared(watched, data):
    with watched.client() as client:
        model = learner(client, data)
        passed = [datum(one) for one in draw(model)]
        found = model.forward_backward(passed, "importance_sampling", {"temperature": 0.5}).result().metrics
        assert MEAN not in found
        assert page(watched, model) is None


def test_logprobs_that_both_scale_alike_are_compared(watched, data):
    with watched.client() as client:
        model = learner(client, data)
        passed = [datum(one) for one in draw(model, temperature=0.7)]
        assert MEAN not in model.forward_backward(passed, "importance_sampling").result().metrics
        found = model.forward_backward(passed, "importance_sampling", {"temperature": 0.7}).result().metrics
        assert 0 <= found[MAX] < 1e-4


def test_greedy_draws_have_the_models_own_logprobs_and_are_compared(watched, data):
    with watched.client() as client:
        model = learner(client, data)
        assert metrics(model, draw(model, 1, temperature=0.0))[MAX] < 1e-4


def test_no_share_no_comparison(server_class, folders, tmp_path, data):
    running = server_class(folders, tmp_path / "data", mismatch_share=0.0)
    try:
        with running.client() as client:
            model = learner(client, data)
            assert MEAN not in metrics(model, draw(model))
    finally:
        running.stop()


def test_a_sampler_that_holds_other_weights_is_told_in_the_log_once(server_class, folders, tmp_path, data, caplog):
    running = server_class(folders, tmp_path / "data", registry=faulty_registry(), sampler="faulty", mismatch_share=1.0)
    try:
        with running.client() as client:
            model = learner(client, data)
            assert metrics(model, draw(model))[MEAN] > 0.1
            metrics(model, draw(model))
            warnings = [record.getMessage() for record in caplog.records if record.name == "weaver.engine.mismatch"]
            assert len(warnings) == 1
            assert f"model {model.model_id}: the sampler's logprobs differ from the trainer's by" in warnings[0]
            assert page(running, model).sequences == 6
    finally:
        running.stop()
