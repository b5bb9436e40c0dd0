"""Teach a small model Pig Latin with Tinker's SDK, and check that it learned.

Needs TINKER_BASE_URL and TINKER_API_KEY in the environment, and a server such as `weaver serve`. `make demo` runs both.
Exits with 1 unless training halves the negative log likelihood of phrases that it never saw.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tinker
from rich.console import Console
from rich.progress import track
from rich.table import Table

RANK, EPOCHS, BATCH, LEARNING_RATE = 16, 2, 5, 1.5e-3
PAIRS = Path(__file__).with_name("pig_latin.jsonl")
console = Console(soft_wrap=True)
Pair = dict[str, str]


def prompt_tokens(tokenizer: Any, english: str) -> list[int]:
    chat = [{"role": "system", "content": "Answer in Pig Latin."}, {"role": "user", "content": english}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def datum(tokenizer: Any, pair: Pair) -> tinker.Datum:
    """Position i predicts token i + 1; only the answer and the end of the turn count."""
    prompt = prompt_tokens(tokenizer, pair["english"])
    answer = [*tokenizer.encode(pair["pig_latin"], add_special_tokens=False), tokenizer.eos_token_id]
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})


def answer_count(data: Sequence[tinker.Datum]) -> float:
    return float(sum(each.loss_fn_inputs["weights"].to_numpy().sum() for each in data))


def nll(client: tinker.TrainingClient, data: list[tinker.Datum]) -> float:
    """The mean negative log likelihood of an answer's token, in nats."""
    return client.forward(data, "cross_entropy").result().metrics["loss:sum"] / answer_count(data)


def answers(client: tinker.TrainingClient, tokenizer: Any, pairs: list[Pair]) -> list[str]:
    """What the model says with its present weights, choosing the likeliest token each time."""
    sampler = client.save_weights_and_get_sampling_client().result()
    greedy = tinker.SamplingParams(max_tokens=32, temperature=0.0)
    prompts = [tinker.ModelInput.from_ints(prompt_tokens(tokenizer, pair["english"])) for pair in pairs]
    asked = [sampler.sample(prompt, 1, greedy) for prompt in prompts]
    texts = [tokenizer.decode(one.result().sequences[0].tokens, skip_special_tokens=True) for one in asked]
    return [" ".join(text.split()) for text in texts]


def train(client: tinker.TrainingClient, data: list[tinker.Datum]) -> None:
    """Submit every step, then collect: the server never waits for this script between two steps."""
    batches = [data[start : start + BATCH] for start in range(0, len(data), BATCH)] * EPOCHS
    submitted = []
    for number, batch in enumerate(batches):
        rate = LEARNING_RATE * (1 - number / len(batches))
        passed = client.forward_backward(batch, "cross_entropy")
        submitted.append((batch, passed, client.optim_step(tinker.AdamParams(learning_rate=rate))))
    for batch, passed, stepped in track(submitted, "training", console=console):
        if not math.isfinite(passed.result().metrics["loss:sum"]):
            sys.exit(f"the loss of {answer_count(batch):.0f} tokens is not finite")
        stepped.result()


def adapter_folder(data_dir: Path, path: str) -> Path:
    """Where a `weaver serve --data-dir DATA_DIR` on this machine keeps what it saved under a tinker:// path."""
    model_id, kind, name = path.removeprefix("tinker://").split("/")
    folder = data_dir / "checkpoints" / model_id.replace(":", "-") / kind / name
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            sys.exit(f"the checkpoint has no file {folder / file}")
    return folder


def show_answers(pairs: list[Pair], before: list[str], after: list[str]) -> None:
    table = Table("English", "before", "after", "Pig Latin")
    for pair, first, last in zip(pairs, before, after, strict=True):
        table.add_row(pair["english"], first, last, pair["pig_latin"])
    Console().print(table)


def load_pairs() -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those held out."""
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [pair for pair in pairs if pair["split"] == "train"], [pair for pair in pairs if pair["split"] == "held_out"]


def open_client() -> tinker.TrainingClient:
    """A LoRA on the first model that the server offers."""
    if "TINKER_BASE_URL" not in os.environ:
        sys.exit("set TINKER_BASE_URL to the URL that `weaver serve` prints, and TINKER_API_KEY to tml-anything")
    model = tinker.RestClient().get_server_capabilities().result().supported_models[0].model_name
    assert model is not None
    console.print(f"a LoRA of rank {RANK} on {model}")
    return tinker.ServiceClient().create_lora_training_client(model, rank=RANK, seed=0).result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach a small model Pig Latin.")
    parser.add_argument("--data-dir", type=Path, help="the server's --data-dir, to print where the adapter lies")
    data_dir: Path | None = parser.parse_args().data_dir
    client = open_client()
    tokenizer = client.get_tokenizer()
    train_pairs, held_out_pairs = load_pairs()
    train_data = [datum(tokenizer, pair) for pair in train_pairs]
    held_out = [datum(tokenizer, pair) for pair in held_out_pairs]
    asked = held_out_pairs[:3]
    nll_before, answers_before = nll(client, held_out), answers(client, tokenizer, asked)
    started = time.monotonic()
    train(client, train_data)
    seconds = time.monotonic() - started
    nll_after, answers_after = nll(client, held_out), answers(client, tokenizer, asked)
    show_answers(asked, answers_before, answers_after)
    tokens = EPOCHS * sum(each.model_input.length for each in train_data)
    console.print(f"trained on {tokens:,} tokens in {seconds:.0f} s: {tokens / seconds:.0f} tokens per second")
    path = client.save_state("pig-latin").result().path
    console.print(f"checkpoint: {path}")
    if data_dir is not None:
        console.print(f"PEFT adapter: {adapter_folder(data_dir, path)}")
    console.print(
        f"held-out negative log likelihood per answer token: {nll_before:.3f} -> {nll_after:.3f} nats"
        f" ({nll_after / nll_before:.0%} of before)"
    )
    if not nll_after < 0.5 * nll_before:
        sys.exit("training did not halve it")


if __name__ == "__main__":
    main()
