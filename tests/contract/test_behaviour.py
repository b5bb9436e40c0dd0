"""Order, waiting, cancelling, closing and the older spellings: the same whichever way."""

import asyncio
import concurrent.futures
import threading
from importlib import import_module

import numpy as np
import pytest

MODEL = "tiny/llama"


def loss_of(output):
    return output.metrics["loss:sum"]


def test_operations_happen_in_the_order_of_the_calls(way, trainer):
    """Whatever happens in between: each pass sees the steps before it and none after."""
    datum, params = [way.datum(9)], way.tinker.AdamParams(learning_rate=0.02)
    futures = []
    for _ in range(4):
        futures.append(trainer.forward_backward(datum, "cross_entropy"))
        trainer.optim_step(params)
    together = [loss_of(future.result()) for future in futures]
    alone = way.client().create_lora_training_client(MODEL, rank=4, seed=7).result()
    for expected in together:
        assert loss_of(alone.forward_backward(datum, "cross_entropy").result()) == pytest.approx(expected, rel=1e-5)
        alone.optim_step(params).result()
    assert len(set(together)) == 4


def test_threads_that_take_turns_are_obeyed_in_that_order(way, trainer):
    datum, params, turn = [way.datum(9)], way.tinker.AdamParams(learning_rate=0.02), threading.Lock()
    made = []

    def work():
        for _ in range(3):
            with turn:
                made.append(trainer.forward_backward(datum, "cross_entropy"))
                trainer.optim_step(params)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [loss_of(future.result(timeout=120)) for future in made]
    alone = way.client().create_lora_training_client(MODEL, rank=4, seed=7).result()
    expected = []
    for _ in range(12):
        expected.append(alone.forward_backward(datum, "cross_entropy"))
        alone.optim_step(params)
    assert found == pytest.approx([loss_of(future.result()) for future in expected], rel=1e-4)


def test_arrays_that_change_after_the_call_change_nothing(our_way):
    trainer = our_way.client().create_lora_training_client(MODEL, rank=4, seed=7).result()
    datum = our_way.datum(200)
    before = loss_of(trainer.forward([datum], "cross_entropy").result())
    futures = [trainer.forward([datum] * 8, "cross_entropy") for _ in range(4)]
    datum.loss_fn_inputs["weights"].to_numpy()[:] = 100
    assert [loss_of(future.result()) for future in futures] == pytest.approx([8 * before] * 4, rel=1e-4)


def test_a_timeout_of_result_is_no_end(way, trainer):
    future = trainer.forward([way.datum(250)] * 40, "cross_entropy")
    with pytest.raises(TimeoutError):
        future.result(timeout=0.001)
    assert loss_of(future.result(timeout=120)) != 0
    assert future.future().done()


def test_a_timeout_of_result_async_is_the_end_of_waiting_and_not_of_the_operation(way, trainer):
    async def waits():
        future = trainer.forward_backward([way.datum(250)] * 40, "cross_entropy")
        with pytest.raises(TimeoutError):
            await future.result_async(timeout=0.001)
        with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
            await future
        stepped = await trainer.optim_step(way.tinker.AdamParams(learning_rate=0.02)).result_async(timeout=120)
        return stepped.metrics

    assert asyncio.run(waits())["grad_norm"] > 0


def test_a_cancelled_sample_makes_room_and_disturbs_nobody(way, client):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    params = way.tinker.SamplingParams(max_tokens=200, stop=[], seed=1)
    long = [sampler.sample(way.prompt(2, 3), 64, params) for _ in range(4)]
    other = sampler.sample(way.prompt(2, 3), 1, way.tinker.SamplingParams(max_tokens=3, stop=[], seed=1))
    for future in long:
        future.future().cancel()
    assert len(other.result(timeout=120).sequences[0].tokens) == 3
    for future in long:
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(timeout=10)


def test_many_samples_at_once(way, client):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    params = way.tinker.SamplingParams(max_tokens=2, stop=[])
    futures = [sampler.sample(way.prompt(2, 3, 4 + n % 20), 1, params) for n in range(200)]
    assert {len(future.result(timeout=120).sequences[0].tokens) for future in futures} == {2}
    ids = [future.result().sequences[0].sequence_id for future in futures]
    assert len(set(ids)) == 200


def test_a_sample_is_both_kinds_of_future(way, client):
    sampler = client.create_sampling_client(base_model=MODEL).result()
    future = sampler.sample(way.prompt(2, 3), 1, way.tinker.SamplingParams(max_tokens=1))
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, way.tinker.APIFuture)
    called = threading.Event()
    with pytest.warns(FutureWarning):
        future.add_done_callback(lambda done: called.set())
    assert concurrent.futures.wait([future], timeout=60).done == {future}
    assert called.wait(60)
    assert (future.done(), future.cancelled(), future.exception()) == (True, False, None)


def test_everything_can_be_awaited_in_a_loop_of_ones_own(way, client):
    async def work():
        trainer = await client.create_lora_training_client(MODEL, rank=4, seed=7)
        passed, stepped = (
            trainer.forward_backward([way.datum(9)], "cross_entropy"),
            trainer.optim_step(way.tinker.AdamParams()),
        )
        gathered = await asyncio.gather(passed.coroutine(), asyncio.create_task(stepped.coroutine()))
        sampler = await trainer.save_weights_and_get_sampling_client()
        asked = [sampler.sample(way.prompt(2, n), 1, way.tinker.SamplingParams(max_tokens=2)) for n in range(2, 6)]
        sampled = await asyncio.gather(*asked)
        logprobs = await sampler.compute_logprobs(way.prompt(2, 3, 4))
        saved = await trainer.save_state("awaited")
        return gathered, sampled, logprobs, saved

    (passed, stepped), sampled, logprobs, saved = asyncio.run(work())
    assert loss_of(passed) != 0
    assert stepped.metrics["grad_norm"] > 0
    assert len(sampled) == 4
    assert [one is None for one in logprobs] == [True, False, False]
    assert saved.path.endswith("/weights/awaited")


def test_the_older_twins_are_awaited_twice_and_warn(way, client):
    async def work():
        with pytest.warns(FutureWarning):
            trainer = await client.create_lora_training_client_async(MODEL, rank=4)
        with pytest.warns(FutureWarning):
            submitted = await trainer.forward_backward_async([way.datum(9)], "cross_entropy")
        with pytest.warns(FutureWarning):
            stepping = await trainer.optim_step_async(way.tinker.AdamParams())
        output, step = await submitted, await stepping
        with pytest.warns(FutureWarning):
            sampler = await trainer.save_weights_and_get_sampling_client_async()
        with pytest.warns(FutureWarning):
            sampled = await sampler.sample_async(way.prompt(2), 1, way.tinker.SamplingParams(max_tokens=1))
        with pytest.warns(FutureWarning):
            info = await trainer.get_info_async()
        return trainer, output, step, sampler, sampled, info

    trainer, output, step, sampler, sampled, info = asyncio.run(work())
    assert isinstance(trainer, way.tinker.TrainingClient)
    assert isinstance(sampler, way.tinker.SamplingClient)
    assert loss_of(output) != 0
    assert step.metrics
    assert len(sampled.sequences) == 1
    assert info.model_data.model_name == MODEL


def test_the_future_of_a_client_is_for_a_while_the_client(way, client):
    future = client.create_lora_training_client(MODEL, rank=4)
    assert isinstance(future, way.tinker.BackcompatTrainingClientFuture)
    assert isinstance(future, way.tinker.TrainingClient)
    with pytest.warns(FutureWarning, match="future"):
        output = future.forward([way.datum(9)], "cross_entropy").result()
    assert loss_of(output) != 0
    with pytest.warns(FutureWarning):
        assert future.model_id == future.result().model_id
    with pytest.raises(AttributeError):
        _ = future._nothing
    assert type(future).__name__ in repr(future)
    sampler = client.create_sampling_client(base_model=MODEL)
    assert isinstance(sampler, way.tinker.SamplingClient)
    with pytest.warns(FutureWarning):
        assert len(sampler.compute_logprobs(way.prompt(2, 3)).result()) == 2


def test_a_client_knows_what_it_is(way, trainer):
    info = trainer.get_info()
    assert (info.model_id, info.is_lora, info.lora_rank) == (trainer.model_id, True, 4)
    assert info.model_data.tokenizer_id
    assert trainer.model_id.endswith(":train:0")
    assert trainer.get_console_url().endswith(trainer.model_id)
    assert trainer.get_telemetry() is None or way.name == "sdk"


def test_arguments_that_nobody_reads_are_told(way):
    with pytest.warns(FutureWarning, match="max_retries"):
        way.client(max_retries=3)
    handlers = import_module(f"{way.tinker.__name__}.lib.retry_handler")
    with pytest.raises(ValueError, match="max_connections"):
        handlers.RetryConfig(max_connections=0)
    retries = handlers.RetryConfig(max_connections=2, enable_retry_logic=False)
    sampler = way.client().create_sampling_client(base_model=MODEL, retry_config=retries).result()
    asked = [sampler.compute_logprobs(way.prompt(2, 3)) for _ in range(6)]
    assert [len(future.result(timeout=60)) for future in asked] == [2] * 6


def test_the_block_finishes_its_session(our_way):
    with our_way.client(user_metadata={"a": "b"}, display_name="mine") as client:
        client.create_lora_training_client(MODEL, rank=2).result()
        session_id = client.holder.get_session_id()
    info = our_way.service.sessions.info(session_id)
    assert (info.ended, info.display_name, info.user_metadata) == ("success", "mine", {"a": "b"})
    client = our_way.client()
    session_id = client.holder.get_session_id()
    with pytest.raises(KeyError), client:
        raise KeyError
    assert our_way.service.sessions.info(session_id).ended == "errored"


def test_closing_lets_happen_what_was_asked_for(our_way):
    with our_way.client() as client:
        trainer = client.create_lora_training_client(MODEL, rank=4, seed=7).result()
        trainer.forward_backward([our_way.datum(200)] * 8, "cross_entropy")
        saving = trainer.save_state("last")
        path = f"tinker://{trainer.model_id}/weights/last"
        saving.result(timeout=60)
    assert our_way.tensors(path)


def test_a_result_on_the_clients_own_loop_is_refused(our_way):
    from weaver.compat.tinker.lib import background

    trainer = our_way.client().create_lora_training_client(MODEL, rank=4).result()

    async def blocks():
        return trainer.forward([our_way.datum(9)], "cross_entropy").result()

    with pytest.raises(RuntimeError, match="await it"):
        background.run(blocks()).result(timeout=60)


def test_a_blocking_wait_inside_a_loop_is_warned_of(our_way, caplog):
    async def blocks():
        return our_way.client().create_lora_training_client(MODEL, rank=2).result()

    asyncio.run(blocks())
    assert "blocks the event loop" in caplog.text


def test_a_custom_loss_that_is_cancelled_poisons_its_client(our_way):
    trainer = our_way.client().create_lora_training_client(MODEL, rank=2).result()
    go = threading.Event()

    def waits(data, logprobs):
        go.wait(60)
        return sum(one.sum() for one in logprobs), {}

    future = trainer.forward_backward_custom([our_way.datum(5)], waits)
    future.future().cancel()
    go.set()
    with pytest.raises(RuntimeError, match="poisoned"):
        trainer.optim_step(our_way.tinker.AdamParams()).result(timeout=60)


def test_a_custom_loss_runs_while_other_clients_go_on(our_way):
    client = our_way.client()
    first, second = (client.create_lora_training_client(MODEL, rank=2, seed=seed).result() for seed in (1, 2))
    go = threading.Event()

    def waits(data, logprobs):
        assert go.wait(60)
        return sum(one.sum() for one in logprobs), {}

    waiting = first.forward_backward_custom([our_way.datum(5)], waits)
    assert loss_of(second.forward([our_way.datum(5)], "cross_entropy").result(timeout=60)) != 0
    go.set()
    assert waiting.result(timeout=60).metrics["surrogate_loss:sum"] != 0
    assert np.isfinite(loss_of(first.forward([our_way.datum(5)], "cross_entropy").result(timeout=60)))
