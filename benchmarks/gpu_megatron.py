"""`make gpu-megatron`: numbers of the backend megatron on a CUDA device, in the processes that a server would start.

Needs no network: models are random and made here. It runs one process with nccl, and two that share the one device
with gloo (nccl refuses that; a run for correctness, gloo goes through the host's memory). Each is compared with
transformers + peft on the CPU: the loss, every logprob and every LoRA gradient of a batch, for each architecture. Then
a process is killed in the middle of training, and the weights are compared with those of a run that nothing disturbed.
Results go to benchmarks/results/ as JSON. `--device cpu` runs the same with gloo where there is no CUDA device.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weaver import workers
from weaver.backend import Backend, BackendFactory
from weaver.domain import AdamParams, ModelSource, OptionValue
from weaver.plugins.losses import weaver_losses
from weaver.registry import load_registry
from weaver.testing.backends import bench_of
from weaver.testing.bench import Bench
from weaver.testing.reference import FAMILIES, TrainingReference

LOSSES = [loss for loss in weaver_losses() if loss.name in ("cross_entropy", "ppo")]
STEP = AdamParams(learning_rate=0.01, eps=1e-6)
# Relative error of values and gradients, absolute of logprobs. bfloat16 is compared with float32: that is its noise.
TOLERANCES = {
    "float32": {"value": 1e-3, "logprob": 1e-3, "gradient": 1e-3, "recovered": 1e-5},
    "bfloat16": {"value": 0.1, "logprob": 0.3, "gradient": 0.25, "recovered": 1e-5},
}


def layouts(device: str) -> Mapping[str, Mapping[str, OptionValue]]:
    return {
        f"tp1 {'nccl' if device == 'cuda' else 'gloo'}": {"tp": 1},
        "tp2 gloo": {"tp": 2, "process_group": "gloo"},
        "tp2 gloo sequence-parallel": {"tp": 2, "process_group": "gloo", "sequence_parallel": True},
    }


def in_layout(megatron: BackendFactory, layout: Mapping[str, OptionValue]) -> BackendFactory:
    """The backend in processes of that layout."""
    options = megatron.effective_options(layout)

    def open_it(source: ModelSource) -> Backend:
        return workers.open_backend(megatron, replace(source, options=options))

    return replace(megatron, open=open_it, processes=None)


def check(factory: BackendFactory, family: str, device: str, dtype: str) -> dict[str, float]:
    """How far everything is off."""
    started = time.perf_counter()
    with bench_of(factory, family, LOSSES, device, dtype, 1.0) as bench:
        found = {"start_seconds": time.perf_counter() - started, "value": 0.0, "logprob": 0.0, "gradient": 0.0}
        for loss in LOSSES:
            for what, off in compare(bench, loss.name).items():
                found[what] = max(found[what], off)
        return found | recover(bench)


def compare(bench: Bench, loss: str) -> dict[str, float]:
    state = bench.trained("m")
    one = bench.one_pass("m", bench.losses[loss])
    value, logprobs, gradients = TrainingReference(bench.model, state.adapter).run(one)
    [result] = bench.run(one)
    found = bench.gradients("m")
    bench.backend.drop_model("m")
    return {
        "value": abs(result.metrics["loss:sum"] - value) / max(1.0, abs(value)),
        "logprob": max(float(np.abs(mine - his).max()) for mine, his in zip(result.logprobs, logprobs, strict=True)),
        "gradient": max(relative(found[name], gradients[name]) for name in gradients),
    }


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0))


def recover(bench: Bench) -> dict[str, float]:
    """Two models learn the same; while the second does, a process is killed."""
    for model_id in ("undisturbed", "disturbed"):
        bench.trained(model_id)
    one = bench.one_pass("undisturbed", LOSSES[0])
    seconds = 0.0
    for model_id in ("undisturbed", "disturbed"):
        for number in range(3):
            bench.run(replace(one, model_id=model_id))
            if number == 1 and model_id == "disturbed":
                os.kill(bench.backend.pids[-1], signal.SIGKILL)  # type: ignore[attr-defined]
                seconds = time.perf_counter()
            bench.backend.optim_step(model_id, STEP)
            seconds = time.perf_counter() - seconds if number == 1 and model_id == "disturbed" else seconds
    mine, his = (bench.backend.export_state(name, optimizer=True).adapter for name in ("disturbed", "undisturbed"))
    off = max(relative(mine.tensors[name], tensor) for name, tensor in his.tensors.items())
    return {"recovered": off, "recovery_seconds": seconds}


def verdicts(checks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is not as it should be."""
    for name, found in checks.items():
        for what, allowed in TOLERANCES[found["dtype"]].items():
            if not found[what] <= allowed:
                yield f"{name}: {what} is off by {found[what]:.1e}, allowed {allowed:.0e}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the backend megatron's numbers on a CUDA device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu runs the same with gloo")
        return 1
    megatron, checks = load_registry().backend("megatron"), {}
    for layout, options in layouts(given.device).items():
        for family in FAMILIES:
            for dtype in ("float32", "bfloat16") if given.device == "cuda" else ("float32",):
                found = check(in_layout(megatron, options), family, given.device, dtype)
                checks[f"{layout} {family} {dtype}"] = {"dtype": dtype, **found}
                print(f"{layout} {family} {dtype}: {json.dumps(found)}", flush=True)
    wrong = list(verdicts(checks))
    cuda = given.device == "cuda"
    machine = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    results = {"machine": machine, "torch": torch.__version__, "checks": checks, "wrong": wrong}
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"gpu_megatron-{given.device}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(wrong) or "everything is as it should be", f"\nwritten to {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
