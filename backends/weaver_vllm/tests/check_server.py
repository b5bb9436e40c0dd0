"""`weaver serve --sampler vllm` as users meet it: through the SDK, and by the conformance checks."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(1500)]
WEAVER = Path(sys.executable).with_name("weaver")


@pytest.fixture(scope="module")
def server(vllm_python, tmp_path_factory):
    """The process, and its URL."""
    log = tmp_path_factory.mktemp("log") / "server"
    command = [
        WEAVER, "serve", "--port", "0", "--device", "cpu", "--data-dir", str(tmp_path_factory.mktemp("data")),
        "--sampler", "vllm", "--vllm-python", vllm_python, "--vllm-arg", f"kv_cache_memory_bytes={512 << 20}",
        "--sampler-option", "vllm-arg=max_num_seqs=64",
    ]  # fmt: skip
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True)
        ready = process.stdout.readline()
        assert "ready" in ready, log.read_text()
        yield process, re.search(r"http://\S+", ready)[0]
        process.terminate()
        children = psutil.Process(process.pid).children(recursive=True)
        assert process.wait(60) == 0
        _, left = psutil.wait_procs(children, timeout=10)
        assert not left


def test_the_server_keeps_what_is_promised_of_sampling(server):
    done = subprocess.run(
        [WEAVER, "conformance", server[1], "--only", "sampling", "--only", "inflight_samplers_follow_the_newest_save"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    print(done.stdout[-600:])


def test_a_policy_learns_and_its_samples_have_the_trainers_logprobs(server):
    """The recipe's loop in small: sample, weigh, step, sample again, with 200 samples on their way at once."""
    import numpy as np
    import tinker

    with tinker.ServiceClient(base_url=server[1], api_key="tml-any") as service:
        client = service.create_lora_training_client("HuggingFaceTB/SmolLM2-135M-Instruct", rank=8).result()
        tokenizer = client.get_tokenizer()
        prompt = tinker.ModelInput.from_ints(tokenizer.encode("My favourite number is"))
        params = tinker.SamplingParams(max_tokens=2, temperature=1.0)
        shares = []
        for _ in range(4):
            sampler = client.save_weights_and_get_sampling_client().result()
            drawn = [sampler.sample(prompt, 10, params) for _ in range(20)]
            samples = [sequence for future in drawn for sequence in future.result().sequences]
            assert len(samples) == 200
            texts = [tokenizer.decode(sample.tokens) for sample in samples]
            rewards = np.array([float(any(digit in text for digit in "0123456789")) for text in texts])
            shares.append(rewards.mean())
            data = [_datum(tinker, prompt, one, reward - rewards.mean()) for one, reward in zip(samples, rewards)]
            passed = client.forward_backward(data, "importance_sampling").result()
            for datum, output in zip(data, passed.loss_fn_outputs, strict=True):
                mine, trainers = datum.loss_fn_inputs["logprobs"].to_numpy(), output["logprobs"].to_numpy()
                assert np.abs(mine - trainers)[-2:].max() < 1e-3
            client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    print("share of samples with a digit:", [f"{share:.2f}" for share in shares])
    assert shares[-1] > shares[0] + 0.2


def _datum(tinker, prompt, sample, advantage):
    ids, before = prompt.to_ints(), len(prompt.to_ints()) - 1
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints([*ids, *sample.tokens[:-1]]),
        loss_fn_inputs={
            "target_tokens": [*ids[1:], *sample.tokens],
            "logprobs": [0.0] * before + sample.logprobs,
            "advantages": [0.0] * before + [advantage] * len(sample.tokens),
        },
    )


def test_the_engine_of_a_running_server_can_be_killed(server):
    """Whoever samples waits a little longer."""
    import tinker

    with tinker.ServiceClient(base_url=server[1], api_key="tml-any") as service:
        sampler = service.create_sampling_client(base_model="HuggingFaceTB/SmolLM2-135M-Instruct").result()
        prompt = tinker.ModelInput.from_ints([10, 20, 30])
        params = tinker.SamplingParams(max_tokens=64, seed=3, temperature=1.0, stop=[])
        undisturbed = sampler.sample(prompt, 4, params).result()
        [engine] = [one for one in psutil.Process(server[0].pid).children() if "engine_side" in one.cmdline()]
        running = sampler.sample(prompt, 4, params)
        engine.kill()
        again = running.result()
        assert [one.tokens for one in again.sequences] == [one.tokens for one in undisturbed.sequences]
        psutil.wait_procs([engine], timeout=60)
