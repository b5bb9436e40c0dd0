"""Sampled tokens with vLLM beside the embedded sampler: the demo model and an adapter, one sample of a prompt and 16.

Both run in float32 on the threads that the environment gives them. Tokens per CPU-second count every process that has
a part in it; on a machine that others use too they say more than tokens per second.
"""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from weaver_peft.sampler import open_sampler

from weaver.domain import AdapterRef, ModelSource, SampleRequest, SamplingParams
from weaver.registry import load_registry
from weaver.testing.reference import write_adapter

PROMPT, NEW = 60, 64
BUILT = Path(__file__).parents[1] / ".venvs/vllm/bin/python"


@pytest.fixture(scope="module")
def embedded(demo):
    opened = open_sampler(ModelSource("demo", demo, "cpu"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def vllm(demo):
    python = os.environ.get("WEAVER_VLLM_PYTHON") or (str(BUILT) if BUILT.exists() else "")
    if not python:
        pytest.skip("no environment has vLLM: make test-vllm builds one, WEAVER_VLLM_PYTHON names another")
    factory = load_registry().sampler("vllm")
    options = factory.effective_options(
        {"vllm_python": python, "vllm_arg": (f"kv_cache_memory_bytes={512 << 20}", "max_num_seqs=64")}
    )
    opened = factory.open(ModelSource("demo", demo, "cpu", "float32", options))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def adapters(demo, tmp_path_factory):
    written = write_adapter(Path(demo), tmp_path_factory.mktemp("adapters") / "one", rank=8, seed=0)
    return {"base": None, "adapter": AdapterRef("one", written)}


def tree_seconds():
    """What this process and all below it have computed."""
    own = psutil.Process()
    times = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


class Counted:
    """Draws, and adds up the CPU-seconds of it."""

    def __init__(self, sampler, request):
        self.sampler, self.request, self.seconds, self.runs = sampler, request, 0.0, 0

    def __call__(self):
        before = tree_seconds()
        result = self.sampler.sample(self.request).result()
        self.seconds += tree_seconds() - before
        self.runs += 1
        return result

    def rate(self):
        return self.runs * self.request.num_samples * NEW / self.seconds


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("weights", ["base", "adapter"])
def test_sampling_with_vllm(side_by_side, benchmark, vllm, embedded, adapters, weights, samples):
    prompt = np.random.default_rng(0).integers(0, 49152, PROMPT)
    params = SamplingParams(max_tokens=NEW, temperature=1.0, stop_token_ids=())
    request = SampleRequest(prompt, samples, params, adapters[weights])
    for sequence in vllm.sample(request).result().sequences:
        whole = np.concatenate([prompt, sequence.tokens])
        scoring = SampleRequest(whole, 1, SamplingParams(1), adapters[weights], prompt_logprobs=True)
        expected = embedded.sample(scoring).result().prompt_logprobs_n[PROMPT:]
        np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-3)
    ours, theirs = Counted(vllm, request), Counted(embedded, request)
    side_by_side(ours, theirs, samples * NEW)
    benchmark.extra_info.update({"per_cpu_second": ours.rate(), "baseline_per_cpu_second": theirs.rate()})
