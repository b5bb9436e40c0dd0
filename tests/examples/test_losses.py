"""The examples of losses do what they say, with the vendor's SDK over HTTP and with weaver's tinker in process."""

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

LOSSES = Path(__file__).parents[2] / "examples/losses"
POLICY_GRADIENTS = ("importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce")
WITH_STOPGRAD = ("cispo", "stable_reinforce")


def falls(losses):
    return all(after < before for before, after in pairwise(losses))


def gradients(way, trainer):
    """What a model has accumulated: with both betas 0 and eps far above g, AdamW's step is -lr / eps · g."""
    before = trainer.save_state("before", overwrite=True).result().path
    trainer.optim_step(way.tinker.AdamParams(learning_rate=1e12, beta1=0.0, beta2=0.0, eps=1e9)).result()
    after = trainer.save_state("after", overwrite=True).result().path
    old, new = (load_file(way.checkpoint(path) / "adapter_model.safetensors") for path in (before, after))
    return {name: (old[name] - new[name]) / 1000 for name in old}


def assert_same(found, expected, *, but=""):
    """Every tensor alone: the difference's norm against the norm of what is expected."""
    compared = [name for name in expected if not but or but not in name]
    assert found.keys() == expected.keys()
    assert compared
    for name in compared:
        size = np.linalg.norm(expected[name])
        assert size > 0, f"{name} has no gradient, so it would prove nothing"
        assert np.linalg.norm(found[name] - expected[name]) / size < 1e-3, name


def test_every_built_in_loss_earns_more_on_fresh_samples(way, model):
    told = way.example("builtin").main(model)
    assert set(told) == {"cross_entropy", *POLICY_GRADIENTS}
    for name, (*losses, before, after) in told.items():
        assert after > before + 0.05, (name, told[name])
        if name not in WITH_STOPGRAD and name != "gspo":  # gspo: one ratio for the sequence, advantages of both signs
            assert losses[-1] < losses[0], (name, losses)


def test_on_fresh_samples_all_policy_gradients_are_one(way, model):
    builtin = way.example("builtin")
    client = way.tinker.ServiceClient()
    make = {name: client.create_lora_training_client(model, rank=8, seed=0).result() for name in POLICY_GRADIENTS}
    first = make["ppo"]
    sampler = first.save_weights_and_get_sampling_client(record_stability_info=True).result()
    drawn, mean = builtin.rollouts(sampler, first.get_tokenizer(), seed=1)
    found = {}
    for name, trainer in make.items():
        reads, config = builtin.LOSSES[name]
        trainer.forward_backward([builtin.datum(one, mean, reads) for one in drawn], name, config).result()
        found[name] = gradients(way, trainer)
    for name in POLICY_GRADIENTS[1:]:
        assert_same(found[name], found["importance_sampling"], but="lora_A")  # B is 0 yet, so A's gradient is


def test_a_function_here_and_one_on_the_server_compute_the_same_squares(way, model):
    losses = way.example("logprob_squared").main(model)
    assert falls(losses["here"])
    assert losses["on the server"] == pytest.approx(losses["here"], rel=1e-4)


def test_answers_become_equally_likely(way, model):
    losses = way.example("variance").main(model)
    assert losses[-1] < losses[0] / 2


def test_the_gradient_of_the_variance_is_autograds(way, model):
    """Against transformers + peft, one datum at a time, with the formula written out."""
    variance = way.example("variance")
    trainer = way.tinker.ServiceClient().create_lora_training_client(model, rank=4, seed=1).result()
    data = [variance.datum(trainer.get_tokenizer(), variance.PROMPT, answer) for answer in variance.ANSWERS]
    for _ in range(2):  # so that B is not 0 any more
        trainer.forward_backward_custom(data, variance.variance)
        trainer.optim_step(way.tinker.AdamParams(learning_rate=0.01)).result()
    folder = way.checkpoint(trainer.save_state("reference", overwrite=True).result().path)
    loss = trainer.forward_backward_custom(data, variance.variance).result().metrics["loss:sum"]
    found = gradients(way, trainer)

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    reference = PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    means = torch.stack([mean_logprob(reference, datum) for datum in data])
    expected = ((means - means.mean()) ** 2).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-3)
    named = reference.named_parameters()
    assert_same(found, {name.replace(".default", ""): one.grad.numpy() for name, one in named if "lora_" in name})


def mean_logprob(reference, datum):
    tokens = torch.tensor([datum.model_input.to_ints()])
    targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].to_numpy())
    answer = torch.from_numpy(datum.loss_fn_inputs["weights"].to_numpy()) > 0
    logprobs = reference(input_ids=tokens).logits[0].log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return logprobs[answer].mean()


def test_the_margin_of_preferred_answers_rises(way, model):
    steps = way.example("bradley_terry").main(model)
    assert falls([step["loss:sum"] for step in steps])
    assert falls([-step["margin"] for step in steps])


def test_whichever_is_preferred_wins(way, model):
    """The other way round, the random model is wrong about every pair at first."""
    example = way.example("bradley_terry")
    example.PAIRS = tuple((prompt, second, first) for prompt, first, second in example.PAIRS)
    steps = example.main(model)
    assert steps[0]["right"] == 0.0
    assert steps[-1]["right"] == 1.0


def test_dpo_begins_at_log_2_and_its_reference_stays(way, model):
    *steps, end = way.example("dpo").main(model)
    assert steps[0]["loss:sum"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert falls([step["loss:sum"] for step in steps])
    assert falls([-step["margin"] for step in steps])
    assert end["moved"] == 0


@pytest.mark.parametrize("over_http", [True, False])
def test_they_are_programs_for_both(over_http, model, server, data_dir):
    """As a user starts them: with the vendor's SDK and a server's address, and by `weaver run`."""
    python = Path(sys.executable)
    started = [python] if over_http else [python.with_name("weaver"), "run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_BASE")}
    if over_http:
        environment |= {"TINKER_BASE_URL": server[0], "TINKER_API_KEY": "tml-test"}
    command = [*started, LOSSES / "dpo.py", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=data_dir)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("step 0: loss 0.6931, margin ")
    assert lines[-1] == "the reference has moved by 0.0e+00"
