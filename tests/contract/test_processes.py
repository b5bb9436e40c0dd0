"""Clients of samplers in other processes."""

import base64
import multiprocessing
import pickle

import pytest

MODEL = "tiny/llama"
PROMPT = [2, 3, 4, 5, 6]


def logprobs_of(packed, prompt):
    """What another process does with what it is sent."""
    sampler = pickle.loads(packed)
    return sampler.get_base_model(), sampler.compute_logprobs(prompt).result(timeout=120)


def logprobs_by_handle(handle, key):
    from weaver.compat import tinker

    sampler = tinker.SamplingClient.from_sampler_handle(handle, api_key=key)
    return sampler.compute_logprobs(tinker.ModelInput.from_ints(PROMPT)).result(timeout=120)


def in_another_process(function, *args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


@pytest.fixture
def sampler(our_way):
    """Of an adapter that is not at its beginning any more."""
    trainer = our_way.client().create_lora_training_client(MODEL, rank=4, seed=7).result()
    trainer.forward_backward([our_way.datum(9)], "cross_entropy")
    trainer.optim_step(our_way.tinker.AdamParams(learning_rate=0.02))
    return trainer.save_weights_and_get_sampling_client().result()


def test_a_pickled_sampler_samples_from_the_same_weights_in_another_process(our_way, sampler):
    expected = sampler.compute_logprobs(our_way.prompt(*PROMPT)).result()
    name, found = in_another_process(logprobs_of, pickle.dumps(sampler), our_way.prompt(*PROMPT))
    assert name == MODEL
    assert found[1:] == pytest.approx(expected[1:], abs=1e-5)


def test_clones_number_their_requests_apart(our_way, sampler):
    clones = [pickle.loads(pickle.dumps(sampler)) for _ in range(2)]
    params = our_way.tinker.SamplingParams(max_tokens=3, stop=[])
    asked = [one.sample(our_way.prompt(2 + n), 1, params) for n in range(3) for one in (sampler, *clones)]
    assert {len(future.result(timeout=60).sequences[0].tokens) for future in asked} == {3}
    assert len({future.result().sequences[0].sequence_id for future in asked}) == 9


def test_a_handle_holds_no_key_and_makes_a_sampler_elsewhere(our_way, sampler):
    handle = sampler.get_sampler_handle()
    assert b"tml-" not in base64.urlsafe_b64decode(handle)
    expected = sampler.compute_logprobs(our_way.prompt(*PROMPT)).result()
    key = "tml-test" if our_way.name == "wire" else None
    assert in_another_process(logprobs_by_handle, handle, key)[1:] == pytest.approx(expected[1:], abs=1e-5)


def test_a_session_of_another_process_is_left_alone(tmp_path):
    """Two services on one data directory: what one has not heard of is not silent."""
    from weaver.config import Config
    from weaver.service import Service

    now = [0.0]
    first = Service(Config(models=(), data_dir=tmp_path, lease_seconds=10), ticks=lambda: now[0])
    second = Service(Config(models=(), data_dir=tmp_path, lease_seconds=10), ticks=lambda: now[0])
    mine, others = first.create_session(user_metadata={}), second.create_session(user_metadata={})
    now[0] = 11.0
    second.heartbeat(mine)
    first.tidy()
    assert first.sessions.info(mine).ended == "expired"
    assert first.sessions.info(others).ended is None
    second.close()
    first.tidy()
    assert first.sessions.info(others).ended == "expired"
    first.close()
