"""The base model of the agent: `python -m weaver_nexau.model FOLDER` writes one that has seen how a tool is called.

A small model never calls a tool by chance, and reinforcement learning needs something to reward. So a few conversations
that go well are trained into the model, on this machine, and the result is written as a folder that `weaver serve` and
transformers (4 and 5) load. Its chat template has tools and gives back every turn token for token.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from weaver_peft.demo_model import demo_model_folder

from weaver import ServiceClient, types
from weaver_nexau.task import KNOWN, TOOL, conversation

TEMPLATE: Final = Path(__file__).with_name("chat_template.jinja")
STEPS, BATCH, LEARNING_RATE = 20, 8, 1e-4


def with_tools(source: Path, folder: Path) -> None:
    """A copy of the model with the template, and with a tokenizer class that transformers knows since version 4."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    shutil.copyfile(TEMPLATE, folder / TEMPLATE.name)
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text())
    told.pop("chat_template", None)
    settings.write_text(json.dumps(told | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def datum(tokenizer: Any, name: str) -> types.Datum:
    """A conversation that went well, of which the assistant's turns count."""
    messages = conversation(name)
    tokens: list[int] = []
    weights: list[float] = []
    for count, message in enumerate(messages):
        if message["role"] == "assistant":
            shown = _rendered(tokenizer, messages[:count], prompt=True)
            said = _rendered(tokenizer, messages[: count + 1], prompt=False)
            ended = len(said) - said[::-1].index(tokenizer.eos_token_id)  # a line break behind it is not the model's
            weights += [0.0] * (len(shown) - len(weights)) + [1.0] * (ended - len(shown))
            tokens = said[:ended]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": np.array(tokens[1:]), "weights": np.array(weights[1:], np.float32)},
    )


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], *, prompt: bool) -> list[int]:
    text: str = tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=prompt, tokenize=False)
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def warm_up(training: Any, tokenizer: Any, steps: int = STEPS) -> Iterable[float]:
    """Trains on conversations about those who are known; tells each step's loss for a token."""
    data = {name: datum(tokenizer, name) for name in KNOWN}
    chosen = Random(0)
    for _ in range(steps):
        batch = [data[name] for name in chosen.sample(KNOWN, BATCH)]
        answer = training.forward_backward(batch, "cross_entropy")
        training.optim_step(types.AdamParams(learning_rate=LEARNING_RATE, weight_decay=0.0))
        counted = sum(float(np.sum(np.asarray(one.loss_fn_inputs["weights"]))) for one in batch)
        yield answer["result"]["metrics"]["loss"] / counted


def write(source: Path, folder: Path, steps: int = STEPS) -> None:
    """The warmed-up model in `folder`. Everything happens in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        cold = Path(scratch) / "model"
        with_tools(source, cold)
        with ServiceClient() as service:
            training = service.create_model(base_model=str(cold), lora_config={"rank": 8})
            for step, loss in enumerate(warm_up(training, training.get_tokenizer(), steps), start=1):
                print(f"warm-up {step}/{steps}: loss {loss:.3f} for a token", flush=True)
            merged = training.export_weights(merge_adapter=True)
            service.download_weights(merged, folder)
        for name in ("tokenizer.json", "tokenizer_config.json", TEMPLATE.name, "generation_config.json"):
            shutil.copyfile(cold / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the model is written; must not be there yet")
    parser.add_argument("--source", type=Path, help="the folder of a model in ChatML; without it, the demo model")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the warm-up")
    asked = parser.parse_args()
    if asked.folder.exists():
        sys.exit(f"{asked.folder} exists; choose another folder")
    write(asked.source or demo_model_folder(), asked.folder, asked.steps)
    print(f"{asked.folder} is ready: weaver serve --model number-agent={asked.folder}")


if __name__ == "__main__":
    main()
