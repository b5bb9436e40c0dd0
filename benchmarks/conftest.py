"""Speed beside correctness: every benchmark runs weaver and a baseline in turn, round by round, and compares results.

The baseline runs in each round's set-up, so both meet the same machine at the same moment; what is quoted is the ratio
of medians. Threads: `OMP_WAIT_POLICY=PASSIVE` (see docs/operations.md) and as many as there are cores, printed on top.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from weaver_peft.demo_model import demo_model_folder

ROUNDS = int(os.environ.get("WEAVER_BENCH_ROUNDS", "3"))


def pytest_report_header(config):
    policy = os.environ.get("OMP_WAIT_POLICY", "unset (spinning)")
    threads = f"threads: {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{threads}, OMP_WAIT_POLICY={policy}, torch {torch.__version__}"


@pytest.fixture(scope="session")
def demo():
    return str(demo_model_folder())


@pytest.fixture
def side_by_side(benchmark, request):
    """Times `ours` and `baseline` alternately; `units` is what one run of either processes, for rates."""

    def run(ours, baseline, units, unit="tokens", rounds=ROUNDS):
        times = []

        def in_turn():
            started = time.perf_counter()
            baseline()
            times.append(time.perf_counter() - started)

        ours()  # warm, both
        baseline()
        benchmark.pedantic(ours, setup=in_turn, rounds=rounds)
        mine, theirs = benchmark.stats.stats.median, statistics.median(times)
        benchmark.extra_info.update(
            {
                "unit": unit,
                "rate": units / mine,
                "baseline_rate": units / theirs,
                "ratio": theirs / mine,
                "added_ms": (mine - theirs) * 1000,
                "threads": torch.get_num_threads(),
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
            }
        )
        ROWS.append((request.node.name, benchmark.extra_info))
        return benchmark.extra_info["ratio"]

    return run


ROWS = []


def pytest_terminal_summary(terminalreporter):
    for name, row in ROWS:
        terminalreporter.write_line(
            f"{name}: {row['rate']:.1f} {row['unit']}/s, baseline {row['baseline_rate']:.1f}: {row['ratio']:.2f}x, "
            f"{row['added_ms']:+.1f} ms per run ({row['threads']} threads, OMP_WAIT_POLICY={row['omp_wait_policy']})"
        )
        if "per_cpu_second" in row:
            terminalreporter.write_line(
                f"    per CPU-second: {row['per_cpu_second']:.1f} {row['unit']}, baseline "
                f"{row['baseline_per_cpu_second']:.1f}"
            )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A model so small that what is measured is everything around it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def served(tiny_folder, tmp_path):
    """The URL of `weaver serve`, in a process of its own."""
    command = [str(Path(sys.executable).with_name("weaver")), "serve", "--port", "0", "--device", "cpu"]
    command += ["--model", f"tiny={tiny_folder}", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield re.search(r"http://\S+", server.stdout.readline())[0]
        server.terminate()
