"""Minutes each, for `make test-megatron`: the conformance command over HTTP, and SmolLM2-135M over three processes."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast
from weaver_peft.trainer import open_backend as open_peft

from weaver import workers
from weaver.backend import ModelSource, Pass
from weaver.domain import AdamParams, Datum, LoraSpec
from weaver.testing import check_backend
from weaver.testing.reference import FAMILIES

COMMAND = [sys.executable, "-m", "weaver.server.cli"]
DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"


@contextmanager
def serving(tmp_path, *arguments):
    """The URL of `weaver serve --backend megatron` with these arguments."""
    command = [*COMMAND, "serve", "--backend", "megatron", "--port", "0", "--device", "cpu", *arguments]
    with subprocess.Popen([*command, "--data-dir", str(tmp_path)], stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[3]
        finally:
            server.terminate()


def failed_checks(url, tmp_path, *arguments):
    report = tmp_path / "report.json"
    subprocess.run([*COMMAND, "conformance", url, "--json", str(report), *arguments], check=False, timeout=3600)
    rows = json.loads(report.read_text())["checks"]
    assert rows
    return {row["name"] for row in rows if row["outcome"] == "failed"}


@pytest.mark.timeout(3600)
def test_the_server_conforms_with_two_processes(model_folder, tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{token}": token for token in range(97)}, "w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(model_folder)
    with serving(tmp_path, "--tp", "2", "--model", f"tiny/llama={model_folder}") as url:
        assert failed_checks(url, tmp_path) == set()


@pytest.mark.demo_model
@pytest.mark.timeout(3600)
def test_smollm2_over_three_processes_trains_as_in_one(registry):
    """9 heads and 3 key/value heads. Three steps on text-like data, every number compared with the backend peft."""
    megatron = registry.backend("megatron")
    source = ModelSource(DEMO, "demo", "cpu")
    three = workers.open_backend(megatron, replace(source, options=megatron.effective_options({"tp": 3})))
    one = open_peft(source)
    try:
        rng = np.random.default_rng(0)
        for backend in (three, one):
            backend.create_model("a", LoraSpec(rank=8, seed=1))
        for _ in range(3):
            data = []
            for length in (40, 25):
                inputs = {"target_tokens": rng.integers(0, 40_000, length), "weights": np.ones(length, np.float32)}
                data.append(Datum(rng.integers(0, 40_000, length), inputs))
            asked = Pass("a", tuple(data), registry.loss("cross_entropy"), {}, True)
            [found], [expected] = three.forward_backward([asked]), one.forward_backward([asked])
            for logprobs, others in zip(found.logprobs, expected.logprobs, strict=True):
                np.testing.assert_allclose(logprobs, others, atol=2e-4)
            step = AdamParams(learning_rate=1e-3, eps=1e-6)
            norms = [backend.optim_step("a", step)["grad_norm"] for backend in (three, one)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    finally:
        three.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_keep_the_contract_for_every_family(family, registry, check_losses):
    megatron = registry.backend("megatron")
    options = megatron.effective_options({"tp": 2, "sequence_parallel": family == "qwen3"})

    def open_it(source):
        return workers.open_backend(megatron, replace(source, options=options))

    check_backend(replace(megatron, open=open_it, processes=None), families=[family])
