"""The flows that the SDK's documentation shows learn, on a small model, with the criteria written here."""

import asyncio

import pytest
from support import SMOL, adam, answer, logprobs_of, nll, prompt

from weaver import AsyncServiceClient, types
from weaver.training_pipeline import SubmitAheadQueue, TokenBudgetBatcher

PAIRS = [
    ("banana split", "anana-bay it-splay"), ("quantum physics", "uantum-qay ysics-phay"),
    ("donut shop", "onut-day op-shay"), ("pickle jar", "ickle-pay ar-jay"),
]  # fmt: skip
LORA = types.LoraConfig(rank=16, seed=7)
STEPS, RATE = 12, 2e-3


@pytest.fixture(scope="module")
def data(tokenizer):
    return [answer(tokenizer, english, latin) for english, latin in PAIRS]


@pytest.fixture(scope="module")
def pig_latin(service, data):
    """A model that was taught by the flow of `pig_latin.py`, and the losses on its way."""
    client = service.create_model(base_model=SMOL, training_mode="lora", lora_config=LORA)
    losses = []
    for _ in range(STEPS):
        losses.append(nll(client.forward_backward(data, "cross_entropy"), data))
        client.optim_step(adam(RATE))
    return client, losses


def test_pig_latin_is_learned_and_said(pig_latin, tokenizer, numbers):
    client, losses = pig_latin
    numbers["pig_latin"] = losses
    assert losses[0] > 2, "the model knows it already"
    assert losses[-1] < losses[0] / 20
    sampler = client.save_weights_and_get_sampling_client(name="pig-latin")
    greedy = types.SamplingParams(max_tokens=24, temperature=0.0, stop=["\n"])
    for english, latin in PAIRS:
        asked = types.ModelInput.from_ints(prompt(tokenizer, english))
        found = sampler.sample(prompt=asked, sampling_params=greedy, num_samples=2)
        for sequence in found["sequences"]:
            assert sequence["text"] == f" {latin}\n"
            assert sequence["stop_reason"] == "stop"
            assert tokenizer.decode(sequence["tokens"]) == sequence["text"]


def test_the_async_client_finds_the_same_losses_when_a_pass_and_its_step_are_sent_at_once(pig_latin, data):
    async def train():
        async with AsyncServiceClient(heartbeat_interval=0.2) as service:
            client = await service.create_model(base_model=SMOL, lora_config=LORA)
            losses = []
            for _ in range(4):
                passed, _ = await asyncio.gather(
                    client.forward_backward(data, "cross_entropy"), client.optim_step(adam(RATE))
                )
                losses.append(nll(passed, data))
            sampler = await client.save_weights_and_get_sampling_client()
            found = await sampler.sample(
                prompt=types.ModelInput.from_ints([1, 2, 3]), sampling_params=types.SamplingParams(max_tokens=2)
            )
            scored = await sampler.compute_logprobs(prompt=types.ModelInput.from_ints([1, 2, 3]))
            assert len(found["sequences"][0]["tokens"]) == 2
            assert scored[0] is None
            assert len(scored) == 3
            return losses

    assert asyncio.run(train()) == pytest.approx(pig_latin[1][:4], rel=1e-3)


def test_streaming_batches_are_submitted_ahead_and_learned(tokenizer):
    source = [answer(tokenizer, f"{name}?", f"{name} is {colour}") for name, colour in
              (("sky", "blue"), ("snow", "white"), ("coal", "black"), ("grass", "green"))] * 6  # fmt: skip

    async def train():
        async with AsyncServiceClient(heartbeat_interval=0.2) as service:
            client = await service.create_model(base_model=SMOL, lora_config=LORA)
            queue, finished = SubmitAheadQueue(client, submit_ahead=1), []
            batches = TokenBudgetBatcher(
                source, length_fn=lambda one: len(one.model_input.to_ints()), global_batch_size=2,
                max_sequence_length=32, drop_last=False,
            )  # fmt: skip
            for step, batch in enumerate(batches):
                await queue.submit(step, batch.items, adam(RATE))
                assert queue.pending_count >= 1
                if (done := await queue.wait_for_room()) is not None:
                    finished.append(done)
            finished += await queue.drain()
            assert [done.step for done in finished] == list(range(len(finished)))
            return [done.forward_backward["result"]["metrics"]["loss"] for done in finished]

    losses = asyncio.run(train())
    assert len(losses) >= 5
    assert losses[-1] < losses[0] / 5


def test_a_reward_rises_by_the_data_that_nexrl_sends(service, tokenizer):
    """importance_sampling with a mask over the prompt, group-normalised advantages, and NexRL's config."""
    client = service.create_model(base_model=SMOL, training_mode="lora", lora_config={"rank": 16})
    asked, rewards = prompt(tokenizer, "Say a word."), []
    for step in range(5):
        sampler = service.create_sampling_client(
            model_path=client.save_weights_for_sampler(name=f"step_{step:06}"),
            base_model=SMOL,
            model_id=client.model_id,
        )
        params = types.SamplingParams(max_tokens=8, temperature=1.0, stop=[])
        found = sampler.sample(
            prompt=types.ModelInput.from_ints(tokens=asked), num_samples=12, sampling_params=params,
            include_prompt_logprobs=False, wait=True,
        )["sequences"]  # fmt: skip
        scores = [
            sum("a" in tokenizer.decode([token]) for token in one["tokens"]) / len(one["tokens"]) for one in found
        ]
        rewards.append(sum(scores) / len(scores))
        data = [_rollout(asked, one, score - rewards[-1]) for one, score in zip(found, scores, strict=True)]
        config = {"entropy_coeff": 1e-4, "enable_debug_dump": False}
        result = client.forward_backward(data, loss_fn="importance_sampling", loss_fn_config=config, wait=True)
        assert isinstance(result["result"]["metrics"]["loss"], float)
        assert "grad_norm" in client.optim_step(adam(4e-3, weight_decay=0.0), wait=True)["metrics"]
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2


def _rollout(asked, sequence, advantage):
    drawn, before = sequence["tokens"], len(asked) - 1
    return types.Datum(
        model_input=types.ModelInput.from_ints([*asked, *drawn][:-1]),
        loss_fn_inputs={
            "target_tokens": [*asked[1:], *drawn],
            "logprobs": [0.0] * before + sequence["logprobs"],
            "advantages": [0.0] * before + [advantage] * len(drawn),
            "loss_mask": [0.0] * before + [1.0] * len(drawn),
        },
    )


def test_sampled_logprobs_are_the_trainers(pig_latin, tokenizer):
    client, _ = pig_latin
    sampler = client.save_weights_and_get_sampling_client()
    asked = prompt(tokenizer, "banana split")
    params = types.SamplingParams(max_tokens=6, seed=3)
    drawn = sampler.sample(prompt=types.ModelInput.from_ints(asked), sampling_params=params)["sequences"][0]
    whole = [*asked, *drawn["tokens"]]
    datum = types.Datum(model_input=types.ModelInput.from_ints(whole[:-1]), loss_fn_inputs={"target_tokens": whole[1:]})
    [trained] = logprobs_of(client.forward([datum], "forward_logprob"))
    assert trained[-len(drawn["tokens"]) :] == pytest.approx(drawn["logprobs"], abs=1e-3)
    scored = sampler.compute_logprobs(prompt=types.ModelInput.from_ints(whole))
    assert scored[1:] == pytest.approx(trained, abs=1e-3)
