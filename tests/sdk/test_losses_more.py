"""gspo and stable_reinforce through the vendor's SDK, against formulas written out here on transformers + peft."""

from dataclasses import replace

import numpy as np
import pytest
import tinker

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
POLICY = {"logprobs": (-6.0, -2.0), "advantages": (-1.0, 1.0)}
CLIP = {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}


def with_input(datum, **arrays):
    inputs = datum.loss_fn_inputs | {name: tinker.TensorData.from_numpy(array) for name, array in arrays.items()}
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


def masked(datum, masked_out):
    """Every token counts in the sequence's ratio but the first ones. Any number that is not 0 marks a token."""
    mask = np.full(datum.model_input.length, 0.5, np.float32)
    mask[:masked_out] = 0
    return with_input(datum, sequence_ratio_mask=mask)


def gspo_gradient_weights(lp, given, low, high):
    """d loss / d lp by hand: every token has the sequence's ratio s, where min() takes what is not clipped."""
    counted = [t for t in range(len(lp)) if given["sequence_ratio_mask"][t] != 0]
    s = np.exp(sum(float(lp[t] - given["logprobs"][t]) for t in counted) / len(counted))
    weights, loss = [], 0.0
    for advantage in given["advantages"].tolist():
        clipped = min(max(s, low), high) * advantage
        loss -= min(s * advantage, clipped)
        weights.append(-s * advantage if s * advantage < clipped or low <= s <= high else 0.0)
    return weights, loss


@pytest.mark.parametrize("clip", [CLIP, {"clip_low_threshold": 0.9997, "clip_high_threshold": 1.0004}])
def test_gspo_agrees_with_its_formula(trained, reference, measured, data, assert_same_gradients, clip):
    client, low, high = trained(), *clip.values()
    batch = [masked(data.datum(length, **POLICY), out) for length, out in ((13, 4), (2, 1), (40, 0), (7, 2), (21, 9))]
    losses = []

    def formula(lp, given):
        weights, loss = gspo_gradient_weights(lp.detach(), given, low, high)
        losses.append(loss)
        return (lp * lp.new_tensor(weights)).sum()

    _, logprobs, expected = reference(client, LLAMA).loss_and_gradients(batch, formula)
    output = client.forward_backward(batch, "gspo", clip).result()
    assert output.metrics["loss:sum"] == pytest.approx(sum(losses), rel=1e-4)
    np.testing.assert_allclose(output.loss_fn_outputs[0]["logprobs"].to_numpy(), logprobs[0], atol=1e-4)
    assert_same_gradients(measured(client), expected)


@pytest.mark.parametrize("given", [{}, {"clip_low_threshold": 0.8}, {"clip_high_threshold": 1.2}])
def test_gspo_clips_at_ppos_thresholds_where_none_are_given(trained, measured, data, assert_same_gradients, given):
    client, batch = trained(), [data.datum(length, **POLICY) for length in (9, 20, 5, 14)]
    outputs = client.forward(batch, "importance_sampling").result().loss_fn_outputs
    ratios = (0.79, 0.81, 1.19, 1.21)
    lps = [out["logprobs"].to_numpy() - np.float32(np.log(ratio)) for out, ratio in zip(outputs, ratios)]
    batch = [masked(with_input(datum, logprobs=lp), 0) for datum, lp in zip(batch, lps)]
    expected = client.forward_backward(batch, "gspo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}).result()
    gradients = measured(client)
    found = client.forward_backward(batch, "gspo", given or None).result()
    assert found.metrics["loss:sum"] == expected.metrics["loss:sum"]
    assert_same_gradients(measured(client), gradients)
    unclipped = client.forward(batch, "gspo", {"clip_low_threshold": 0.0, "clip_high_threshold": 9.0}).result()
    assert unclipped.metrics["loss:sum"] != pytest.approx(found.metrics["loss:sum"], rel=1e-3)


def test_gspo_on_its_own_logprobs_has_the_gradient_of_importance_sampling(
    trained, measured, data, assert_same_gradients
):
    client, batch = trained(), [data.datum(length, **POLICY) for length in (9, 20)]
    outputs = client.forward(batch, "importance_sampling").result().loss_fn_outputs
    batch = [with_input(datum, logprobs=out["logprobs"].to_numpy()) for datum, out in zip(batch, outputs)]
    client.forward_backward(batch, "importance_sampling").result()
    expected = measured(client)
    client.forward_backward([masked(datum, 0) for datum in batch], "gspo", CLIP).result()
    assert_same_gradients(measured(client), expected)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda d: d, {"clip_low_threshold": -0.5}, r"loss_fn_config\['clip_low_threshold'\] is -0.5"),
        (
            lambda d: with_input(d, sequence_ratio_mask=np.ones(2, np.float32)),
            CLIP,
            r"data\[0\].loss_fn_inputs\['sequence_ratio_mask'\] has shape \(2,\); it must be that of .* \(5,\)",
        ),
        (
            lambda d: with_input(d, sequence_ratio_mask=np.zeros(5, np.float32)),
            CLIP,
            r"the loss 'gspo' of weaver.plugins.losses failed on data\[0\]: .*sequence_ratio_mask is 0 everywhere",
        ),
        (
            lambda d: with_input(d, target_tokens=np.ones((5, 2), np.int64)),
            CLIP,
            r"target_tokens .* has shape \(5, 2\); the loss 'gspo' works on \(5,\) only",
        ),
    ],
)
def test_gspo_refuses_by_name(trained, data, change, config, message):
    client, datum = trained(), masked(data.datum(5, **POLICY), 0)
    with pytest.raises((tinker.BadRequestError, tinker.RequestFailedError), match=message):
        client.forward_backward([change(datum)], "gspo", config).result()


# stable_reinforce

PROMPT = [5, 6, 7, 8]
DAY = 86_400


def rollout(client, sampled, prompt=PROMPT, sequences=4, tokens=9, temperature=1.0):
    """Data of a sampling client's draws, as a training loop makes them, each with its provenance."""
    params = tinker.SamplingParams(max_tokens=tokens, temperature=temperature, stop=[], seed=3)
    response = sampled.sample(tinker.ModelInput.from_ints(prompt), sequences, params).result()
    return [episode(prompt, sequence, advantage - 1.3) for advantage, sequence in enumerate(response.sequences)]


def episode(prompt, sequence, advantage, offset=0):
    """The datum of one drawn sequence: its targets are the prompt but its first token, then what was drawn."""
    tokens, drawn = [*prompt, *sequence.tokens], len(sequence.tokens)
    advantages = [0.0] * (len(prompt) - 1) + [advantage] * drawn
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "advantages": advantages},
    )
    name = sequence.sequence_id
    return datum.with_provenance(
        model_input=[
            tinker.PromptProvenanceSpan(sequence_id=name, length=len(prompt)),
            tinker.SampledProvenanceSpan(sequence_id=name, offset=offset, length=drawn - 1),
        ],
        loss_fn_inputs=[
            tinker.PromptProvenanceSpan(sequence_id=name, offset=1, length=len(prompt) - 1),
            tinker.SampledProvenanceSpan(sequence_id=name, offset=offset, length=drawn),
        ],
    )


def with_logprobs(datum, logprobs):
    """The same datum with the sampler's logprobs on it, for a loss that takes them from the client."""
    inputs = datum.loss_fn_inputs | {"logprobs": tinker.TensorData.from_numpy(np.array(logprobs, np.float32))}
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


@pytest.fixture
def recording(trained):
    """A training client, and a sampling client of its weights that records."""
    client = trained()
    return client, client.save_weights_and_get_sampling_client(record_stability_info=True).result()


def move(client, data):
    """Change the weights a good deal, so that the sampler's are old."""
    client.forward_backward(data.supervised(9, 5, 30), "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=0.05)).result()


def test_on_policy_without_a_pull_it_has_the_gradient_of_importance_sampling(
    recording, measured, assert_same_gradients
):
    client, sampler = recording
    batch = rollout(client, sampler)
    lp = [out["logprobs"].to_numpy() for out in client.forward(batch, "stable_reinforce").result().loss_fn_outputs]
    client.forward_backward(batch, "stable_reinforce", {"kl_coeff": 0.0}).result()
    found = measured(client)
    client.forward_backward([with_logprobs(*pair) for pair in zip(batch, lp)], "importance_sampling").result()
    assert_same_gradients(found, measured(client))


def test_off_policy_it_agrees_with_its_formula(recording, reference, measured, data, assert_same_gradients):
    client, sampler = recording
    batch = rollout(client, sampler, sequences=6, temperature=0.8)
    params = tinker.SamplingParams(max_tokens=9, temperature=0.8, stop=[], seed=3)
    sequences = sampler.sample(tinker.ModelInput.from_ints(PROMPT), 6, params).result().sequences
    move(client, data)
    kl, low, high = 0.3, 0.2, 1.5
    drawn, ratios = {tuple(sequence.tokens): sequence.logprobs for sequence in sequences}, []

    def formula(lp, given):
        tail = lp[len(PROMPT) - 1 :]
        q = lp.new_tensor(drawn[tuple(given["target_tokens"][len(PROMPT) - 1 :].tolist())])
        found = (tail - q).exp().tolist()
        ratios.extend(found)
        r = [min(max(ratio, low), high) for ratio in found]
        reinforce = sum(-r[t] * tail[t] * given["advantages"][-1] for t in range(len(tail)))
        return reinforce + sum(kl / 2 * (tail[t] - q[t]) ** 2 for t in range(len(tail)))

    loss, _, expected = reference(client, LLAMA).loss_and_gradients(batch, formula)
    assert min(ratios) < low
    assert max(ratios) > high
    config = {"kl_coeff": kl, "clip_low_threshold": low, "clip_high_threshold": high}
    output = client.forward_backward(batch, "stable_reinforce", config).result()
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-3, abs=1e-3)
    assert_same_gradients(measured(client), expected)


def test_without_a_config_it_pulls_by_a_hundredth_and_bounds_the_ratio_by_two(
    recording, measured, data, assert_same_gradients
):
    client, sampler = recording
    batch = rollout(client, sampler)
    move(client, data)
    client.forward_backward(batch, "stable_reinforce").result()
    found = measured(client)
    config = {"kl_coeff": 0.01, "clip_low_threshold": 0.0, "clip_high_threshold": 2.0}
    client.forward_backward(batch, "stable_reinforce", config).result()
    assert_same_gradients(found, measured(client), tolerance=1e-6)


def test_logprobs_sent_along_must_be_those_that_were_recorded(recording, data):
    client, sampler = recording
    response = sampler.sample(tinker.ModelInput.from_ints(PROMPT), 1, tinker.SamplingParams(max_tokens=5, stop=[]))
    [sequence] = response.result().sequences
    datum = episode(PROMPT, sequence, 1.0)
    right = np.array([0.0] * 3 + list(sequence.logprobs), np.float32)
    sent = dict(datum.loss_fn_inputs)
    for values, message in (
        (right, None),
        (right - 0.01, r"'logprobs'\] is .* at \[3\], which is not what the server"),
    ):
        object.__setattr__(datum, "loss_fn_inputs", sent | {"logprobs": tinker.TensorData.from_numpy(values)})
        if message is None:
            client.forward_backward([datum], "stable_reinforce").result()
        else:
            with pytest.raises(tinker.BadRequestError, match=message):
                client.forward_backward([datum], "stable_reinforce").result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: with_input(d), r"data\[0\].loss_fn_input_spans is missing: the loss 'stable_reinforce' must know"),
        (
            lambda d: respan(d, sequence_id="nobody"),
            r"data\[0\].loss_fn_input_spans\[1\] names the sequence 'nobody', which this server has no record of",
        ),
        (
            lambda d: respan(d, offset=1),
            r"loss_fn_input_spans\[1\] covers the tokens 1 to 10 of the sequence '.*:0', which has 9",
        ),
        (
            lambda d: respan(d, by=(1, -1), offset=1),
            r"loss_fn_inputs\['advantages'\] is -1.2\d* at \[3\], but loss_fn_input_spans say that no sampler drew",
        ),
        (lambda d: respan(d, by=(-1, 0)), r"loss_fn_input_spans cover 11 tokens; target_tokens has 12"),
    ],
)
def test_spans_that_say_nothing_or_something_else_are_refused_by_name(recording, change, message):
    client, sampler = recording
    [datum, *_] = rollout(client, sampler)
    with pytest.raises(tinker.BadRequestError, match=message):
        client.forward_backward([change(datum)], "stable_reinforce").result()


def respan(datum, by=(0, 0), **fields):
    """The datum with another pair of spans; both become longer or shorter `by` so many tokens."""
    first, second = datum.loss_fn_input_spans
    first = replace(first, length=first.length + by[0])
    second = replace(second, **{"length": second.length + by[1]} | fields)
    return replace(datum, loss_fn_input_spans=[first, second])


def test_a_target_that_was_not_drawn_is_refused_by_name(recording):
    client, sampler = recording
    [datum, *_] = rollout(client, sampler)
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy().copy()
    was, targets[5] = targets[5], (targets[5] + 1) % 90
    datum.loss_fn_inputs["target_tokens"] = tinker.TensorData.from_numpy(targets)
    message = rf"\[1\] contradicts target_tokens\[5\], which is {targets[5]}: token 2 of the sequence .* is {was}"
    with pytest.raises(tinker.BadRequestError, match=message):
        client.forward_backward([datum], "stable_reinforce").result()


def test_a_sampler_that_does_not_record_leaves_nothing_to_train_on(trained):
    client = trained()
    batch = rollout(client, client.save_weights_and_get_sampling_client().result())
    with pytest.raises(tinker.BadRequestError, match="which this server has no record of"):
        client.forward_backward(batch, "stable_reinforce").result()


def test_another_session_cannot_train_on_what_was_recorded(recording, server):
    client, sampler = recording
    batch = rollout(client, sampler)
    with server.client() as stranger:
        other = stranger.create_lora_training_client(LLAMA, rank=4).result()
        with pytest.raises(tinker.BadRequestError, match="in the same session"):
            other.forward_backward(batch, "stable_reinforce").result()


def test_what_was_recorded_lasts_a_day_from_its_last_use(recording, server, monkeypatch):
    client, sampler = recording
    recorded = server.service._recorded
    now = recorded._clock()
    batch = rollout(client, sampler)
    for later in (0.9 * DAY, 1.8 * DAY):
        monkeypatch.setattr(recorded, "_clock", lambda later=later: now + later)
        client.forward_backward(batch, "stable_reinforce").result()
    monkeypatch.setattr(recorded, "_clock", lambda: now + 2.9 * DAY)
    with pytest.raises(tinker.BadRequestError, match="which this server has no record of"):
        client.forward_backward(batch, "stable_reinforce").result()


def test_the_next_thing_sampled_sweeps_what_has_expired(recording, server, monkeypatch):
    client, sampler = recording
    [datum, *_] = rollout(client, sampler)
    name = datum.loss_fn_input_spans[0].sequence_id
    assert len(server.service._store.sampled_sequences([name])) == 1
    tomorrow = server.service._recorded._clock() + DAY
    monkeypatch.setattr(server.service._recorded, "_clock", lambda: tomorrow)
    rollout(client, sampler, prompt=[9, 9])
    assert server.service._store.sampled_sequences([name]) == []


def test_what_was_recorded_outlives_a_restart(server, folders, tmp_path):
    running = type(server)(folders, tmp_path)
    try:
        sampler = running.client().create_sampling_client(base_model=LLAMA, record_stability_info=True)
        [datum, *_] = rollout(None, sampler)
        name = datum.loss_fn_input_spans[0].sequence_id
        running.stop()
        running.start()
        [row] = running.service._store.sampled_sequences([name])
        assert np.frombuffer(row["tokens"], "<i4").tolist() == datum.loss_fn_inputs["target_tokens"].tolist()[3:]
    finally:
        running.stop()
