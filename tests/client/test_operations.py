"""Handles of operations, in both places: what is accepted happens once, in order, also when nobody waits for it."""

import asyncio
import os
import subprocess
import sys

import pytest

import weaver
from weaver.compat.tinker.lib import background
from weaver.operations import WeaverOperationError

from .conftest import MODEL, datum, new_model

types = weaver.types
DATA = [datum([5, 9, 3, 7]), datum([11, 3, 3])]
PARAMS = types.AdamParams(learning_rate=1e-2)


def test_a_handle_tells_how_it_stands_and_gives_what_waiting_would_have(trainer):
    handle = trainer.forward(DATA, "cross_entropy", wait=False)
    assert handle.status in ("pending", "done")
    assert handle.done() == (handle.status == "done")
    waited = trainer.forward(DATA, "cross_entropy")
    assert handle.result() == waited
    assert (handle.status, handle.done(), handle.error, handle.pending_info) == ("done", True, None, None)
    assert handle.response == waited
    assert handle.wait()["id"] == handle.operation_id
    assert handle.refresh()["response"] == waited
    again = weaver.OperationHandle.from_payload(handle.client, {"id": handle.operation_id, "status": "pending"})
    assert again.result() == waited
    output = waited["result"]["loss_fn_outputs"][0]["logprobs"]
    assert isinstance(output["data"], list)
    assert (output["dtype"], output["shape"]) == ("float32", [3])


def test_operations_run_in_the_order_in_which_they_were_asked_for(service):
    """Passes and steps that nobody waited for in between are what the same calls with waiting are."""
    slow, fast = new_model(service), new_model(service)
    for _ in range(3):
        slow.forward_backward(DATA, "cross_entropy")
        slow.optim_step(PARAMS)
    handles = []
    for _ in range(3):
        handles.append(fast.forward_backward(DATA, "cross_entropy", wait=False))
        handles.append(fast.optim_step(PARAMS, wait=False))
    results = weaver.OperationHandle.wait_all(handles)
    losses = [result["result"]["metrics"]["loss"] for result in results[::2]]
    assert losses[0] > losses[1] > losses[2]
    expected = slow.forward(DATA, "cross_entropy")["result"]["metrics"]["loss"]
    assert fast.forward(DATA, "cross_entropy")["result"]["metrics"]["loss"] == pytest.approx(expected, rel=1e-6)


def test_an_accepted_operation_that_fails_says_what_failed(trainer):
    """exp(logp - q) is infinite for q = -1e30: the pass is accepted, and its loss is no number."""
    inputs = {"weights": None, "logprobs": [-1e30, -1.0, -1.0], "advantages": [1.0, 1.0, 1.0]}
    given = {name: value for name, value in inputs.items() if value is not None}
    bad = types.Datum(
        model_input=types.ModelInput.from_ints([5, 9, 3]), loss_fn_inputs={"target_tokens": [9, 3, 7], **given}
    )
    handle = trainer.forward_backward([bad], "importance_sampling", wait=False)
    with pytest.raises(WeaverOperationError) as caught:
        handle.result()
    error = caught.value
    assert isinstance(error, RuntimeError)
    assert error.operation_id == handle.operation_id
    assert str(error) == f"Operation failed: {error.code}: {error.message} (operation_id={handle.operation_id})"
    assert "importance_sampling" in error.message
    assert (handle.status, handle.error) == ("error", error.code)
    assert error.retryable is False
    with pytest.raises(WeaverOperationError):
        trainer.forward_backward([bad], "importance_sampling")
    assert trainer.optim_step(PARAMS)["metrics"].get("grad_norm", 0.0) == 0.0, "a failed pass adds nothing"


def test_a_saved_state_comes_back_with_its_loss_and_its_optimizer(trainer):
    trainer.forward_backward(DATA, "cross_entropy")
    trainer.optim_step(PARAMS)
    weights = trainer.save_state(name="weights")
    whole = trainer.save_state(name="whole", checkpoint_type="weight_and_optimizer", ttl_seconds=7200)
    sampling = trainer.save_state(name="sampling", checkpoint_type="sampling")
    assert (weights.checkpoint_type, weights.ttl_seconds) == ("weight", None)
    assert (whole.checkpoint_type, whole.ttl_seconds) == ("weight_and_optimizer", 7200)
    assert (sampling.checkpoint_type, sampling.ttl_seconds) == ("sampling", 3600)
    assert whole.path == f"weaver://{trainer.model_id}/checkpoints/whole"

    def stepped():
        trainer.forward_backward(DATA, "cross_entropy")
        trainer.optim_step(PARAMS)
        return trainer.forward(DATA, "cross_entropy")["result"]["metrics"]["loss"]

    goes_on = stepped()
    trainer.load_state_with_optimizer(whole)
    assert stepped() == pytest.approx(goes_on, rel=1e-6)
    trainer.load_state(weights.path)
    assert stepped() != pytest.approx(goes_on, rel=1e-6), "the optimizer began anew"
    with pytest.raises(weaver.WeaverAPIError, match="holds no optimizer state"):
        trainer.load_state_with_optimizer(weights)
    assert {one.name for one in trainer.list_checkpoints()} == {"weights", "whole", "sampling"}
    trainer.set_checkpoint_ttl(whole, None)
    assert {one.name: one.ttl_seconds for one in trainer.list_checkpoints()}["whole"] is None


def test_what_nobody_waited_for_is_done_before_a_client_is_closed(where):
    with weaver.ServiceClient(**where) as client:
        trainer = new_model(client)
        for _ in range(4):
            trainer.forward_backward(DATA, "cross_entropy", wait=False)
        trainer.optim_step(PARAMS, wait=False)
        trainer.save_state(name="last", wait=False)
    with weaver.ServiceClient(**where) as another:
        run = another.get_training_run(trainer.model_id)
        assert "last" in {one["name"] for one in run["checkpoints"]}
        with pytest.raises(weaver.WeaverAPIError, match="not in memory any more"):
            another.http.post(f"/api/v1/models/{trainer.model_id}/checkpoints", json={"type": "weight"})


PROGRAM = """
import weaver
from weaver import types
client = weaver.ServiceClient()
client.connect()
trainer = client.create_model(base_model="tiny/llama", lora_config={"rank": 4})
inputs = {"target_tokens": [9, 3], "weights": [1.0, 1.0]}
data = types.Datum(model_input=types.ModelInput.from_ints([5, 9]), loss_fn_inputs=inputs)
for _ in range(20):
    trainer.forward_backward([data], "cross_entropy", wait=False)
trainer.save_state(name="at-the-end", wait=False)
"""


def test_what_nobody_waited_for_is_done_when_its_process_ends(local, folder):
    environment = {**os.environ, "WEAVER_DATA_DIR": str(local / "process"), "WEAVER_MODEL_ALIASES": f"{MODEL}={folder}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=280, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((local / "process").rglob("*at-the-end*")), done.stderr
    assert done.stderr == "", "nothing was tried twice, or given up"


def test_async_clients_do_the_same(where):
    async def loop():
        async with weaver.AsyncServiceClient(**where) as client:
            lora = types.LoraConfig(rank=4, seed=3)
            trainer = await client.create_model(base_model=MODEL, lora_config=lora)
            first, second = await asyncio.gather(
                trainer.forward_backward(DATA, "cross_entropy", wait=False), trainer.optim_step(PARAMS, wait=False)
            )
            results = await weaver.AsyncOperationHandle.wait_all([first, second])
            assert await first == results[0] == await first.result()
            assert first.done()
            custom = await trainer.forward_backward_custom(
                DATA, lambda data, logprobs: (-sum(one.sum() for one in logprobs), {"data": len(data)})
            )
            saved = await trainer.save_state()
            sampler = await trainer.save_weights_and_get_sampling_client()
            params = types.SamplingParams(max_tokens=3, temperature=0.0)
            many = await asyncio.gather(
                *(sampler.sample(prompt=types.ModelInput.from_ints([5]), sampling_params=params) for _ in range(20))
            )
            return results, custom, saved, many

    results, custom, saved, many = asyncio.run(loop())
    assert isinstance(saved, types.Checkpoint)
    assert custom["metrics"] == {"data": 2}
    assert len({tuple(one["sequences"][0]["tokens"]) for one in many}) == 1
    with weaver.ServiceClient(**where) as client:
        trainer = new_model(client)
        expected = trainer.forward_backward(DATA, "cross_entropy")
        assert results[0]["result"]["metrics"]["loss"] == pytest.approx(expected["result"]["metrics"]["loss"])
        after = trainer.optim_step(PARAMS)
        assert results[1]["metrics"]["grad_norm"] == pytest.approx(after["metrics"]["grad_norm"], rel=1e-5)


def test_an_async_client_connects_when_it_is_first_used(where):
    async def used():
        client = weaver.AsyncServiceClient(**where)
        with pytest.raises(RuntimeError, match="Session not initialized yet"):
            client.session_id  # noqa: B018
        sampler = await client.create_sampling_client(base_model=MODEL)
        logprobs = await sampler.compute_logprobs(prompt=types.ModelInput.from_ints([5, 9, 3]))
        session = client.session_id
        await client.aclose()
        with pytest.raises(RuntimeError, match="not connected"):
            await client.list_models()
        return session, logprobs

    session, logprobs = asyncio.run(used())
    assert session
    assert logprobs[0] is None
    assert len(logprobs) == 3


def test_a_blocking_client_says_so_before_it_is_connected(where):
    client = weaver.ServiceClient(**where)
    for use in (lambda: client.create_model(base_model=MODEL), lambda: client.http, client.list_models):
        with pytest.raises(RuntimeError, match="ServiceClient is not connected"):
            use()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.connect()


def test_nothing_waits_for_itself_on_the_loop_of_the_clients(where):
    """A client may be collected as garbage there."""
    client = weaver.ServiceClient(**where)
    client.connect()

    async def on_the_loop():
        with pytest.raises(RuntimeError, match="use AsyncServiceClient there"):
            client.list_models()
        client.close()

    async def later():
        return client._connection.closed

    background.run(on_the_loop()).result(30)
    assert background.run(later()).result(30)


def test_a_session_can_begin_after_its_connection(where):
    client = weaver.ServiceClient(**where)
    client.connect(ensure_session=False)
    assert client.list_organizations()
    with pytest.raises(RuntimeError, match="Session not initialized yet"):
        client.create_model(base_model=MODEL)
    session = client.ensure_session(name="late", tags=["a"])
    assert session["id"] == client.session_id
    assert client.ensure_session(name="other") == session
    assert client.create_model(base_model=MODEL).session_id == client.session_id
    client.close()


def test_a_session_can_be_joined_by_its_id(where):
    with weaver.ServiceClient(**where, name="mine", labels={"team": "a"}) as client:
        trainer = new_model(client)
        with weaver.ServiceClient(**where, session_id=client.session_id) as guest:
            assert guest.session_id == client.session_id
            assert guest.ensure_session() == guest.http.get(f"/api/v1/sessions/{client.session_id}")
            assert guest.get_model(trainer.model_id)["training_mode"] == "lora"
