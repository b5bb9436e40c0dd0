"""The calls that NexRL 1.4.0 makes of this API, in the forms it makes them: the same numbers in both places."""

import gc
import os

import pytest
import torch

from .conftest import MODEL

TOKENS = [5, 9, 3, 7, 2, 8, 4]


def holder(where):
    """What NexRL's service holder does before the first step."""
    from weaver import ServiceClient, types
    from weaver.types.tensor import tensor_payload

    client = ServiceClient(base_url=where.get("base_url"), api_key=os.getenv("WEAVER_API_KEY"))
    client.connect()
    trainer = client.create_model(base_model=MODEL, training_mode="lora", lora_config={"rank": 4, "seed": 3})
    return client, trainer, types, tensor_payload


def data(types, tensor_payload):
    """Two trajectories, as its converter makes them: prompts have zeros."""
    prompt = [0.0, 0.0, 0.0]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(TOKENS[:-1]),
            loss_fn_inputs={
                "target_tokens": tensor_payload(torch.tensor(TOKENS[1:], dtype=torch.int64)),
                "logprobs": tensor_payload(torch.tensor([*prompt, -4.0, -4.5, -5.0])),
                "advantages": tensor_payload(torch.tensor([*prompt, one, one, one])),
                "loss_mask": tensor_payload(torch.tensor([*prompt, 1.0, 1.0, 1.0])),
            },
        )
        for one in (0.5, -0.25)
    ]


def run(where):
    """One step and what is read of it, as the holder reads it."""
    client, trainer, types, tensor_payload = holder(where)
    first = trainer.save_weights_for_sampler(name="initial")
    sampler = client.create_sampling_client(model_path=first, base_model=MODEL, model_id=getattr(trainer, "model_id"))  # noqa: B009
    prompt = types.ModelInput.from_ints(tokens=TOKENS[:3])
    sampled = sampler.sample(
        prompt=prompt,
        num_samples=1,
        sampling_params=types.SamplingParams(max_tokens=4, temperature=0.0, stop=[]),
        include_prompt_logprobs=False,
        wait=True,
    )["sequences"][0]
    before = sampler.compute_logprobs(prompt=types.ModelInput.from_ints(TOKENS))
    passed = trainer.forward_backward(
        data(types, tensor_payload),
        loss_fn="importance_sampling",
        loss_fn_config={"entropy_coeff": 1e-4, "enable_debug_dump": False},
        wait=True,
    )
    params = types.AdamParams(
        learning_rate=1e-2, beta1=0.9, beta2=0.95, weight_decay=0.01, eps=1e-8, grad_clip_norm=1.0
    )
    stepped = trainer.optim_step(params, wait=True)
    path = trainer.save_weights_for_sampler(name="step_000001")
    after = client.create_sampling_client(model_path=path, base_model=MODEL, model_id=trainer.model_id)
    found = {
        "path": path.partition("/checkpoints/")[2],
        "sampled": sampled,
        "text": sampled.get("text"),
        "before": before,
        "loss": passed["result"]["metrics"]["loss"],
        "outputs": [output["logprobs"]["data"] for output in passed["result"]["loss_fn_outputs"]],
        "stepped": stepped["metrics"],
        "after": after.compute_logprobs(prompt=types.ModelInput.from_ints(TOKENS)),
        "teacher": client.create_sampling_client(base_model=MODEL).compute_logprobs(prompt=prompt),
        "words": trainer.get_tokenizer().decode([5, 9]),
    }
    client.close()
    return found


@pytest.fixture(scope="module")
def both(local, server):
    return run({}), run({"base_url": server})


def test_nexrl_gets_what_it_reads(both):
    for found in both:
        assert found["path"] == "step_000001"
        assert len(found["sampled"]["tokens"]) == len(found["sampled"]["logprobs"]) > 0
        assert found["sampled"]["stop_reason"] in ("stop", "length")
        assert found["text"] == " ".join(f"w{token}" for token in found["sampled"]["tokens"])
        assert found["before"][0] is None
        assert len(found["before"]) == len(TOKENS)
        assert [len(output) for output in found["outputs"]] == [6, 6]
        assert found["stepped"]["grad_norm"] > 0
        assert found["words"] == "w5 w9"


def test_the_numbers_are_the_same_in_process_and_over_http(both):
    here, there = both
    for name in ("before", "after", "teacher"):
        assert here[name][1:] == pytest.approx(there[name][1:], abs=1e-5), name
    assert here["sampled"]["tokens"] == there["sampled"]["tokens"]
    assert here["sampled"]["logprobs"] == pytest.approx(there["sampled"]["logprobs"], abs=1e-5)
    assert here["loss"] == pytest.approx(there["loss"], abs=1e-5)
    assert here["stepped"]["grad_norm"] == pytest.approx(there["stepped"]["grad_norm"], rel=1e-4)


def test_the_step_moved_what_is_sampled(both):
    for found in both:
        moved = max(abs(a - b) for a, b in zip(found["before"][1:], found["after"][1:], strict=True))
        assert moved > 1e-3
        assert found["before"][1:4] == pytest.approx(found["outputs"][0][:3], abs=1e-4), "scored as they are trained"


def test_a_client_that_is_collected_as_garbage_closes_itself(where, monkeypatch):
    import weaver

    class Holder:
        def __init__(self):
            self.client = weaver.ServiceClient(**where)
            self.client.connect()

        def __del__(self):
            self.client.close()

    kept = Holder()
    client = kept.client
    del kept
    gc.collect()
    assert client._connection.closed
    with pytest.raises(RuntimeError, match="not connected"):
        client.list_models()
