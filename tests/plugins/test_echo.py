"""The echo plugins keep both contracts: their numbers against formulas and against torch's AdamW."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weaver.backend import ModelSource, Pass
from weaver.domain import (
    AdamParams,
    AdapterRef,
    Datum,
    LoraSpec,
    PromptTargets,
    SampleRequest,
    SamplingParams,
    StopReason,
    TokenRows,
)
from weaver.errors import CheckpointDamaged, InvalidInput
from weaver.loss import Loss
from weaver.plugins.echo import EchoBackend, EchoSampler, describe
from weaver.plugins.losses import weaver_losses

SOURCE = ModelSource("some/name", "echo:vocab=5,context=64")
CROSS_ENTROPY = Loss("cross_entropy", function=lambda *_: pytest.fail("the echo backend calls no loss function"))


def one_pass(targets, weights, *, backward=True, loss=CROSS_ENTROPY):
    inputs = {"target_tokens": np.array(targets), "weights": np.array(weights, np.float32)}
    return Pass("m", [Datum(np.zeros(len(targets), np.int64), inputs)], loss, {}, backward)


@pytest.fixture
def backend():
    made = EchoBackend(SOURCE)
    made.create_model("m", LoraSpec(seed=1))
    return made


def test_the_location_tells_the_sizes():
    facts = describe(SOURCE)
    assert (facts.name, facts.vocabulary_size, facts.context_length) == ("some/name", 5, 64)
    assert describe(ModelSource("n", "echo")).vocabulary_size == 256


@pytest.mark.parametrize("location", ["demo", "echo:vocab=x", "echo:layers=2"])
def test_a_location_it_cannot_read_is_refused(location):
    with pytest.raises(InvalidInput, match="must look like 'echo:vocab=100,context=512'"):
        describe(ModelSource("n", location))


def test_a_new_model_finds_every_token_equally_likely(backend):
    (result,) = backend.forward_backward([one_pass([[1, 2], [3, 4]], [[1, -2], [0.5, 0]])])
    np.testing.assert_allclose(result.logprobs[0], np.full((2, 2), -np.log(5)), rtol=1e-6)
    assert result.metrics["loss:sum"] == pytest.approx(np.log(5) * (1 - 2 + 0.5), rel=1e-6)


def test_training_follows_torchs_gradients_and_adamw(backend):
    """Two clipped steps of torch on the same loss; float32 on both sides, so to 1e-6."""
    params = AdamParams(learning_rate=0.1, weight_decay=0.01, eps=1e-8, grad_clip_norm=0.5)
    bias = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.AdamW([bias], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    for targets, weights in (([1, 2, 2], [1.0, -0.5, 2.0]), ([4, 1, 0], [0.1, 0.2, 0.3])):
        (result,) = backend.forward_backward([one_pass(targets, weights)])
        logprobs = bias.log_softmax(0)[torch.tensor(targets)]
        np.testing.assert_allclose(result.logprobs[0], logprobs.detach(), atol=1e-6)
        optimizer.zero_grad()
        (-logprobs * torch.tensor(weights)).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_([bias], 0.5)
        optimizer.step()
        assert backend.optim_step("m", params)["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    state = backend.export_state("m", optimizer=False)
    np.testing.assert_allclose(state.adapter.tensors["base_model.model.echo.bias"], bias.detach(), atol=1e-6)


def test_logits_are_divided_by_the_temperature(backend):
    loss = next(loss for loss in weaver_losses() if loss.name == "cross_entropy")
    bias = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1])
    state = backend.export_state("m", optimizer=False)
    tensors = {"base_model.model.echo.bias": bias.numpy().copy()}
    backend.import_state("m", replace(state, adapter=replace(state.adapter, tensors=tensors)))
    leaf = bias.clone().requires_grad_()
    expected = (leaf / 0.4).log_softmax(0)[[1, 4, 4]]
    value = -(expected * torch.tensor([1.0, -0.5, 2.0])).sum()
    value.backward()
    one = replace(one_pass([1, 4, 4], [1, -0.5, 2], loss=loss), config={"temperature": 0.4})
    [found] = backend.forward_backward([one])
    np.testing.assert_allclose(found.logprobs[0], expected.detach(), rtol=1e-5)
    assert found.metrics["loss:sum"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert backend.optim_step("m", AdamParams())["grad_norm"] == pytest.approx(float(leaf.grad.norm()), rel=1e-5)


def test_probabilities_are_of_what_a_sampling_mask_keeps(backend):
    loss = next(loss for loss in weaver_losses() if loss.name == "cross_entropy")
    bias = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1])
    state = backend.export_state("m", optimizer=False)
    tensors = {"base_model.model.echo.bias": bias.numpy().copy()}
    backend.import_state("m", replace(state, adapter=replace(state.adapter, tensors=tensors)))
    leaf, rows = bias.clone().requires_grad_(), [[4, 1], [], [2, 4, 0]]
    targets, weights = [1, 4, 4], [1, -0.5, 2]
    kept = [(leaf / 0.4)[row or [0, 1, 2, 3, 4]].logsumexp(0) for row in rows]
    expected = torch.stack([leaf[target] / 0.4 - total for target, total in zip(targets, kept, strict=True)])
    (-expected * torch.tensor(weights)).sum().backward()
    one = replace(one_pass(targets, weights, loss=loss), config={"temperature": 0.4})
    masked = replace(one.data[0], sampling_mask=TokenRows.of_lists(rows))
    [found] = backend.forward_backward([replace(one, data=[masked])])
    np.testing.assert_allclose(found.logprobs[0], expected.detach(), rtol=1e-5)
    assert backend.optim_step("m", AdamParams())["grad_norm"] == pytest.approx(float(leaf.grad.norm()), rel=1e-5)


def test_gradients_accumulate_and_a_forward_adds_none(backend):
    together, apart = one_pass([1, 2], [1, 2]), [one_pass([1], [1]), one_pass([2], [2])]
    backend.create_model("other", LoraSpec(seed=1))
    backend.forward_backward([together, one_pass([3], [9], backward=False)])
    backend.forward_backward([Pass("other", one.data, one.loss, {}, True) for one in apart])
    norms = [backend.optim_step(model_id, AdamParams())["grad_norm"] for model_id in ("m", "other")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 0


def test_another_loss_fails_alone(backend):
    ppo = Loss("ppo", function=CROSS_ENTROPY.function)
    failed, result = backend.forward_backward([one_pass([1], [1], loss=ppo), one_pass([1], [1])])
    assert isinstance(failed, InvalidInput)
    assert "'cross_entropy' only, not 'ppo'" in str(failed)
    assert "loss:sum" in result.metrics


def test_a_model_that_is_not_there_can_be_dropped(backend):
    backend.drop_model("never made")


def test_a_state_goes_on_where_it_was_saved(backend):
    backend.forward_backward([one_pass([1], [1])])
    backend.optim_step("m", AdamParams())
    saved = backend.export_state("m", optimizer=True)
    backend.create_model("copy", LoraSpec(seed=2))
    backend.import_state("copy", saved)
    for model_id in ("m", "copy"):
        backend.optim_step(model_id, AdamParams(learning_rate=0.1))
    first, second = (backend.export_state(model_id, optimizer=True) for model_id in ("m", "copy"))
    assert first.optimizer.step == second.optimizer.step == 2
    for name, tensor in (first.adapter.tensors | first.optimizer.tensors).items():
        np.testing.assert_array_equal(tensor, (second.adapter.tensors | second.optimizer.tensors)[name])
    assert saved.optimizer.step == 1


def drawn(prompt, *, adapter=None, mask=False, **params):
    request = SampleRequest(np.array(prompt), 2, SamplingParams(**params), adapter, True, 2, sampling_mask=mask)
    return EchoSampler(SOURCE).sample(request)


def test_the_sampler_says_the_prompt_over_and_over():
    result = drawn([1, 2, 3], max_tokens=5).result()
    assert [sequence.tokens.tolist() for sequence in result.sequences] == [[1, 2, 3, 1, 2]] * 2
    assert result.sequences[0].stop_reason is StopReason.LENGTH
    np.testing.assert_array_equal(result.prompt_logprobs_n, [np.nan, 0, 0])
    assert result.topk_prompt_logprobs.token_ids_nk.tolist() == [[0, 0], [2, 0], [3, 0]]


def test_the_sampler_answers_what_is_asked_about_the_prompt():
    targets = PromptTargets((2, 2), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([2, 1, -1, 3]))
    request = SampleRequest(
        np.array([1, 2, 3]),
        1,
        SamplingParams(2),
        prompt_logprobs=True,
        topk_prompt_logprobs=1,
        prompt_logprobs_last_n=1,
        prompt_targets=targets,
        prompt_alternatives=2,
        topk_sample_logprobs=2,
    )
    result = EchoSampler(SOURCE).sample(request).result()
    np.testing.assert_array_equal(result.prompt_logprobs_n, [np.nan, np.nan, 0])
    np.testing.assert_array_equal(result.topk_prompt_logprobs.logprobs_nk[:, 0], [np.nan, np.nan, 0])
    np.testing.assert_array_equal(result.target_logprobs.logprobs_c, [0, -np.inf, 0, 0])
    assert result.prompt_alternatives.tokens_mk.tolist() == [[2, 2], [3, 3]]
    np.testing.assert_array_equal(result.sequences[0].top_logprobs.logprobs_nk, [[0, np.nan]] * 2)
    assert result.sequences[0].top_logprobs.token_ids_nk[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("stops", "tokens"), [(None, [4, 0]), ((), [4, 0, 3, 4, 0, 3]), ((3,), [4, 0, 3]), ((9,), [4, 0, 3, 4, 0, 3])]
)
def test_the_sampler_returns_the_stop_token_it_ends_at(stops, tokens):
    (sequence, _) = drawn([4, 0, 3], max_tokens=6, stop_token_ids=stops).result().sequences
    assert sequence.tokens.tolist() == tokens
    assert sequence.logprobs.size == len(tokens)


@pytest.mark.parametrize(
    ("params", "rows"),
    [
        ({}, [[], [], []]),
        ({"top_p": 0.5}, [[4], [1], [3]]),
        ({"top_k": 2}, [[4], [1], [3]]),
        ({"top_k": 2, "temperature": 0.0}, [[], [], []]),
        ({"min_tokens": 2}, [[4], [1], []]),
    ],
)
def test_the_only_token_that_can_come_is_its_mask(params, rows):
    (sequence, _) = drawn([4, 1, 3], max_tokens=3, mask=True, **params).result().sequences
    assert sequence.sampling_mask.lists() == rows
    (sequence, _) = drawn([4, 1, 3], max_tokens=3, **params).result().sequences
    assert sequence.sampling_mask is None


def test_where_the_only_token_may_not_come_yet_it_says_so(tmp_path):
    (sequence, _) = drawn([4, 0, 3], max_tokens=6, min_tokens=1).result().sequences
    assert sequence.tokens.tolist() == [4, 0]
    said = r"sampling_params.min_tokens is 2, but the sampler 'echo' is certain that token 2 is the stop token 0"
    with pytest.raises(InvalidInput, match=said):
        drawn([4, 0, 3], max_tokens=6, min_tokens=2).result()


def test_what_the_sampler_cannot_do_arrives_as_an_error(tmp_path):
    with pytest.raises(InvalidInput, match="has no tokenizer and cannot find stop strings"):
        drawn([1], max_tokens=1, stop_strings=("a",)).result()
    with pytest.raises(CheckpointDamaged, match="has no folder"):
        drawn([1], max_tokens=1, adapter=AdapterRef("a", tmp_path / "gone")).result()
