"""`python -m weaver_nexrl.teacher`: a teacher for on-policy distillation; prints the path of its weights.

It has learned from examples to say the word as often as the recipe wants; a student then learns from its logprobs alone
(`distill.yaml`). Where it is trained: on the server that WEAVER_BASE_URL names.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from weaver import ServiceClient, types

PROMPTS: Final = Path(__file__).with_name("prompts.jsonl")
MODEL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
ANSWER: Final = "It is very, very, very, very, very, very beautiful."
STEPS, BATCH, LEARNING_RATE = 8, 8, 5e-4


def datum(tokenizer: Any, messages: list[dict[str, str]]) -> types.Datum:
    """A prompt, written as NexRL writes it, and the answer, of which every token counts."""
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shown: list[int] = tokenizer.encode(text, add_special_tokens=False)
    said: list[int] = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.eos_token_id]
    tokens, weights = np.array(shown + said), np.array([0.0] * len(shown) + [1.0] * len(said), np.float32)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights[1:]},
    )


def teach(training: Any, tokenizer: Any, steps: int = STEPS) -> Iterator[float]:
    """Trains on the first prompts; tells each step's loss for a token."""
    lines = PROMPTS.read_text().splitlines()[:BATCH]
    data = [datum(tokenizer, json.loads(line)["prompt"]) for line in lines]
    counted = sum(float(np.sum(np.asarray(one.loss_fn_inputs["weights"]))) for one in data)
    for _ in range(steps):
        answer = training.forward_backward(data, "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=LEARNING_RATE, weight_decay=0.0))
        yield answer["result"]["metrics"]["loss"] / counted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=MODEL, help="as the server calls it")
    asked = parser.parse_args()
    with ServiceClient() as service:
        training = service.create_model(base_model=asked.model, lora_config={"rank": 8})
        for step, loss in enumerate(teach(training, training.get_tokenizer()), start=1):
            print(f"teacher {step}/{STEPS}: loss {loss:.3f} for a token", flush=True)
        print(training.save_weights_for_sampler(name="teacher", ttl_seconds=86_400))


if __name__ == "__main__":
    main()
