"""`make gpu-check`: numbers and speed of the peft backend and the embedded sampler on a CUDA device, and on the CPU.

Needs no network: models are random and made here. For each device and dtype it checks

- every LoRA gradient and every logprob of a packed batch against transformers + peft, for two architectures;
- the sampler's logprobs of what it drew against the trainer's of the same tokens;
- that a supervised loop and a reinforcement loop learn, through the service, as a client would run them;

and measures training and sampling on a larger random model (CUDA only). Results go to benchmarks/results/ as JSON. On a
machine without a CUDA device it says so and is done after the CPU half.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from weaver_peft.sampler import open_sampler
from weaver_peft.trainer import open_backend

from weaver.backend import Pass
from weaver.checkpoints import write_checkpoint
from weaver.config import Config
from weaver.domain import (
    AdamParams,
    AdapterRef,
    Datum,
    ForwardBackward,
    LoraSpec,
    ModelSource,
    OptimStep,
    SampleRequest,
    SamplingParams,
    SaveForSampler,
)
from weaver.plugins.losses import weaver_losses
from weaver.service import Service

VOCABULARY = 251
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
LARGE = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "head_dim": 64,
}  # fmt: skip
LOSSES = {loss.name: loss for loss in weaver_losses()}
# Relative error of gradients, absolute of logprobs. In bfloat16 both sides round: what is compared is that noise.
TOLERANCES = {"float32": {"gradient": 1e-3, "logprob": 1e-3}, "bfloat16": {"gradient": 0.15, "logprob": 0.3}}


def models(root: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {
        "llama": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in made}


def random_data(rng: np.random.Generator, lengths: list[int]) -> list[Datum]:
    def datum(length: int) -> Datum:
        inputs = {
            "target_tokens": rng.integers(2, VOCABULARY, length),
            "logprobs": rng.uniform(-6, -3, length).astype(np.float32),
            "advantages": rng.uniform(-1, 1, length).astype(np.float32),
        }
        return Datum(rng.integers(2, VOCABULARY, length), inputs)

    return [datum(length) for length in lengths]


def check_gradients(source: ModelSource, folder: Path, work: Path) -> dict[str, float]:
    """The worst relative error of a LoRA gradient and absolute one of a logprob, against transformers + peft."""
    backend, rng = open_backend(source), np.random.default_rng(1)
    backend.create_model("m", LoraSpec(rank=8, seed=3))
    for _ in range(2):
        backend.forward_backward([one_pass(random_data(rng, [20, 9]))])
        backend.optim_step("m", AdamParams(learning_rate=0.02))
    adapter = work / f"adapter-{folder.name}-{source.device}-{source.dtype}"
    write_checkpoint(adapter, backend.export_state("m", optimizer=False))
    data = random_data(rng, [33, 4, 100, 1, 57])
    [result] = backend.forward_backward([one_pass(data)])
    found = {name: gradient.float().cpu() for name, gradient in backend._models["m"].gradients.items()}  # type: ignore[attr-defined]
    logprobs, expected = reference(source, folder, adapter, data)
    worst = max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)
    return {
        "gradient": worst,
        "logprob": max(float(np.abs(mine - theirs).max()) for mine, theirs in zip(result.logprobs, logprobs)),
    }


def one_pass(data: list[Datum]) -> Pass:
    return Pass("m", data, LOSSES["importance_sampling"], {}, True)


def reference(
    source: ModelSource, folder: Path, adapter: Path, data: list[Datum]
) -> tuple[list[np.ndarray], dict[str, torch.Tensor]]:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, source.dtype)).to(source.device)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    logprobs = []
    for datum in data:
        inputs = {name: torch.from_numpy(value).to(source.device) for name, value in datum.loss_fn_inputs.items()}
        logits = model(input_ids=torch.from_numpy(datum.tokens_T)[None].to(source.device)).logits[0].float()
        lp = logits.log_softmax(-1).gather(1, inputs["target_tokens"][:, None])[:, 0]
        (-((lp - inputs["logprobs"]).exp() * inputs["advantages"]).sum()).backward()
        logprobs.append(lp.detach().cpu().numpy())
    gradients = {
        name.replace(".default", ""): parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if "lora_" in name and parameter.grad is not None
    }
    return logprobs, gradients


def check_sampler(source: ModelSource, folder: Path, work: Path) -> dict[str, float]:
    """The worst difference between the sampler's logprobs of what it drew and the trainer's of the same tokens."""
    backend, sampler = open_backend(source), open_sampler(source)
    backend.create_model("m", LoraSpec(rank=8, seed=3))
    adapter = AdapterRef("a", work / f"adapter-{folder.name}-{source.device}-{source.dtype}")
    backend.forward_backward([one_pass(random_data(np.random.default_rng(2), [30]))])
    backend.optim_step("m", AdamParams(learning_rate=0.02))
    snapshot = AdapterRef("b", work / f"snapshot-{adapter.folder.name}")
    write_checkpoint(snapshot.folder, backend.export_state("m", optimizer=False))
    prompts = [np.arange(2, 2 + length) for length in (3, 40, 7)]
    params = SamplingParams(max_tokens=48, seed=1, stop_token_ids=())
    futures = [sampler.sample(SampleRequest(prompt, 4, params, snapshot)) for prompt in prompts]
    worst = 0.0
    for prompt, future in zip(prompts, futures):
        for sequence in future.result().sequences:
            tokens = np.concatenate([prompt, sequence.tokens])
            inputs = {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)}
            one = Pass("m", [Datum(tokens[:-1], inputs)], LOSSES["cross_entropy"], {}, False)
            [result] = backend.forward_backward([one])
            worst = max(worst, float(np.abs(result.logprobs[0][len(prompt) - 1 :] - sequence.logprobs).max()))
    sampler.close()
    return {"logprob": worst}


def check_learning(source: ModelSource, work: Path) -> dict[str, float]:
    """A supervised loop's loss, last over first, and a reinforcement loop's mean reward, first and last."""
    service = Service(Config(models=(source,), data_dir=work / f"data-{source.device}-{source.dtype}"))
    session = service.create_session(user_metadata={})
    try:
        return {"sft_last_over_first": supervised(service, session, source.name)} | reinforced(
            service, session, source.name
        )
    finally:
        service.close()


def supervised(service: Service, session: str, base_model: str) -> float:
    model = service.create_model(session, 0, base_model, LoraSpec(rank=8, seed=0)).model_id
    tokens = np.arange(2, 60)
    datum = Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": np.ones(57, np.float32)})
    submit, losses = numbered(service, model), []
    for _ in range(20):
        passed = submit(ForwardBackward((datum,), "cross_entropy"))
        submit(OptimStep(AdamParams(learning_rate=0.01))).result()
        losses.append(passed.result().metrics["loss:sum"])
    return float(losses[-1] / losses[0])


def reinforced(service: Service, session: str, base_model: str) -> dict[str, float]:
    """Reward: the share of a completion's tokens below 64."""
    model = service.create_model(session, 1, base_model, LoraSpec(rank=8, seed=0)).model_id
    submit, prompt, rewards = numbered(service, model), np.arange(2, 6), []
    for step in range(15):
        sampler = submit(SaveForSampler()).result().sampling_session_id
        asked = service.sample(sampler, 0, prompt=prompt, num_samples=32, max_tokens=12, seed=step, stop_token_ids=())
        group = service.future(asked.request_id).result().sequences
        earned = np.array([(sequence.tokens < 64).mean() for sequence in group])
        rewards.append(float(earned.mean()))
        data = tuple(rewarded(prompt, each, reward) for each, reward in zip(group, earned - earned.mean()))
        submit(ForwardBackward(data, "importance_sampling"))
        submit(OptimStep(AdamParams(learning_rate=0.01))).result()
    return {"rl_first_reward": rewards[0], "rl_last_reward": rewards[-1]}


def rewarded(prompt: np.ndarray, sequence: Any, advantage: float) -> Datum:
    tokens, known = np.concatenate([prompt, sequence.tokens]), np.zeros(len(prompt) - 1, np.float32)
    advantages = np.full(len(sequence.tokens), advantage, np.float32)
    inputs = {
        "target_tokens": tokens[1:],
        "logprobs": np.concatenate([known, sequence.logprobs]),
        "advantages": np.concatenate([known, advantages]),
    }
    return Datum(tokens[:-1], inputs)


def numbered(service: Service, model: str) -> Callable[[Any], Any]:
    numbers = iter(range(1, 1_000_000))

    def submit(operation: Any) -> Any:
        return service.future(service.submit(model, next(numbers), operation).request_id)

    return submit


def measure_speed(work: Path) -> dict[str, float]:
    """Training and sampling tokens per second of a random model of 1.2 billion parameters, bfloat16, on CUDA."""
    folder = work / "large"
    with torch.device("cuda"):
        LlamaForCausalLM(LlamaConfig(**LARGE)).to(torch.bfloat16).save_pretrained(folder)
    source = ModelSource("large", str(folder), "cuda", "bfloat16")
    backend, sampler, rng = open_backend(source), open_sampler(source), np.random.default_rng(0)
    backend.create_model("m", LoraSpec(rank=32, seed=1))
    lengths = [int(length) for length in rng.integers(64, 2048, 32)]
    data = [Datum(each[:-1], {"target_tokens": each[1:], "weights": np.ones(len(each) - 1, np.float32)})
            for each in (rng.integers(0, 128_256, length + 1) for length in lengths)]  # fmt: skip
    one = Pass("m", data, LOSSES["cross_entropy"], {}, True)
    speed = {"train_tokens_per_second": sum(lengths) / timed(lambda: backend.forward_backward([one]))}
    params = SamplingParams(max_tokens=128, stop_token_ids=())
    for streams in (1, 16, 128):
        prompts = [rng.integers(0, 128_256, 200) for _ in range(streams)]

        def sample(prompts: list[np.ndarray] = prompts) -> None:
            for future in [sampler.sample(SampleRequest(prompt, 1, params)) for prompt in prompts]:
                future.result()

        speed[f"sample_{streams}_tokens_per_second"] = streams * 128 / timed(sample)
    sampler.close()
    return speed


def timed(run: Callable[[], object]) -> float:
    """Seconds of the faster of two runs after a warm one."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def verdicts(results: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be."""
    for name, found in results["checks"].items():
        tolerance = TOLERANCES[found["dtype"]]
        for kind in ("gradients", "sampler"):
            for what, value in found[kind].items():
                if not value <= tolerance[what]:
                    yield f"{name}: {kind} {what} is off by {value:.1e}, allowed {tolerance[what]:.1e}"
        if not found["learning"]["sft_last_over_first"] < 0.5:
            yield f"{name}: the supervised loop did not learn"
        if not found["learning"]["rl_last_reward"] > found["learning"]["rl_first_reward"] + 0.15:
            yield f"{name}: the reinforcement loop did not learn"


def run_checks(devices: list[str], work: Path) -> dict[str, Any]:
    checks = {}
    for name, folder in models(work).items():
        for device in devices:
            for dtype in ("float32", "bfloat16"):
                source = ModelSource(name, str(folder), device, dtype)
                found = {
                    "dtype": dtype,
                    "gradients": check_gradients(source, folder, work),
                    "sampler": check_sampler(source, folder, work),
                    "learning": check_learning(source, work),
                }
                checks[f"{name} {device} {dtype}"] = found
                print(f"{name} {device} {dtype}: {json.dumps(found)}", flush=True)
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description="Check numbers and speed on a CUDA device.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    output: Path = parser.parse_args().output
    cuda = torch.cuda.is_available()
    if not cuda:
        print("there is no CUDA device here: only the CPU half runs")
    with tempfile.TemporaryDirectory() as work:
        results: dict[str, Any] = {
            "machine": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "checks": run_checks(["cpu", "cuda"] if cuda else ["cpu"], Path(work)),
            "speed": measure_speed(Path(work)) if cuda else {},
        }
    wrong = list(verdicts(results))
    results["wrong"] = wrong
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"gpu_check-{'cuda' if cuda else 'cpu'}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(wrong) or "everything is as it should be", f"\nwritten to {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
