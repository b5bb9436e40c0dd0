"""Streams cut into batches by tokens, and steps submitted ahead."""

import asyncio

import pytest

import weaver
from weaver import types
from weaver.training_pipeline import CompletedTrainingStep, SubmitAheadQueue, TokenBudgetBatcher

from .conftest import MODEL, datum


def batches(lengths, **more):
    made = TokenBudgetBatcher(lengths, length_fn=int, global_batch_size=2, max_sequence_length=10, **more)
    return [(batch.items, batch.tokens) for batch in made]


def test_a_batch_has_at_most_its_tokens():
    assert batches([8, 8, 8, 4, 8, 5]) == [((8, 8), 16), ((8, 4, 8), 20)]
    assert batches([8, 8, 8, 4, 8, 5], drop_last=False) == [((8, 8), 16), ((8, 4, 8), 20), ((5,), 5)]
    assert batches([]) == []


def test_a_stream_is_read_as_it_is_needed():
    def endless():
        while True:
            yield 10

    made = iter(TokenBudgetBatcher(endless(), length_fn=int, global_batch_size=2, max_sequence_length=10))
    assert next(made).items == (10, 10)


def test_a_sample_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="sample length 11 exceeds max_sequence_length=10"):
        batches([11])
    with pytest.raises(ValueError, match="lengths must be positive"):
        batches([0])
    for name in ("global_batch_size", "max_sequence_length"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            TokenBudgetBatcher([], length_fn=int, **{"global_batch_size": 1, "max_sequence_length": 1, name: 0})


DATA = [datum([5, 9, 3, 7]), datum([11, 3, 3])]
PARAMS = types.AdamParams(learning_rate=1e-2)


def test_steps_submitted_ahead_train_like_steps_waited_for(where):
    async def ahead():
        async with weaver.AsyncServiceClient(**where) as client:
            lora = types.LoraConfig(rank=4, seed=3)
            trainer = await client.create_model(base_model=MODEL, lora_config=lora)
            queue, done = SubmitAheadQueue(trainer, submit_ahead=1), []
            for step in range(4):
                await queue.submit(step, DATA, PARAMS)
                done.append(await queue.wait_for_room())
                assert queue.pending_count == min(step + 1, 1)
            done += await queue.drain()
            assert queue.pending_count == 0
            return done, await trainer.forward(DATA, "cross_entropy")

    done, after = asyncio.run(ahead())
    assert done[0] is None
    steps = [one for one in done if one is not None]
    assert [one.step for one in steps] == [0, 1, 2, 3]
    assert all(isinstance(one, CompletedTrainingStep) for one in steps)
    with weaver.ServiceClient(**where) as client:
        trainer = client.create_model(base_model=MODEL, lora_config=types.LoraConfig(rank=4, seed=3))
        for one in steps:
            waited = trainer.forward_backward(DATA, "cross_entropy")
            assert one.forward_backward["result"]["metrics"]["loss"] == pytest.approx(
                waited["result"]["metrics"]["loss"], rel=1e-6
            )
            assert one.optimizer["metrics"].keys() == trainer.optim_step(PARAMS)["metrics"].keys()
        expected = trainer.forward(DATA, "cross_entropy")["result"]["metrics"]["loss"]
    assert after["result"]["metrics"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_queue_without_room_takes_nothing_and_drains_what_failed(where):
    async def failing():
        async with weaver.AsyncServiceClient(**where) as client:
            trainer = await client.create_model(base_model=MODEL, lora_config={"rank": 4})
            queue = SubmitAheadQueue(trainer, submit_ahead=0)
            await queue.submit(0, DATA, PARAMS)
            with pytest.raises(RuntimeError, match="call wait_for_room"):
                await queue.submit(1, DATA, PARAMS)
            assert (await queue.wait_for_room()).step == 0
            with pytest.raises(weaver.WeaverAPIError, match="learning_rate"):
                await queue.submit(1, DATA, types.AdamParams(learning_rate=-1.0))
            assert queue.pending_count == 0
            await queue.submit(2, DATA, PARAMS)
            assert [one.step for one in await queue.drain()] == [2]

    asyncio.run(failing())
    with pytest.raises(ValueError, match="submit_ahead must be non-negative"):
        SubmitAheadQueue(None, submit_ahead=-1)
