"""Tiny stand-ins for the datasets that recipes load by name: folders that `datasets` finds before it asks a hub."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]

PICK = "Pick a number from 1 to 4 and answer with it."
SUFFIX = " Provide a numerical answer without units, written inside \\boxed{}."
LUCKY = 3
"""Of the numbers 1 to 4 the one that earns a reward: supervised training makes all four likely, RL must find it."""

FEW_SHOT = [
    ("user", "How many r's are in strawberry?" + SUFFIX),
    (
        "assistant",
        "Let's spell the word out and number all the letters: 1) s 2) t 3) r 4) a 5) w 6) b 7) e 8) r 9) r 10) y. "
        "We have r's at positions 3, 8, and 9. \\boxed{3}",
    ),
]
SOUNDS = {
    "cat": "meows",
    "dog": "barks",
    "owl": "hoots",
    "fox": "yaps",
    "hen": "clucks",
    "bee": "hums",
    "cow": "moos",
    "ant": "sings",
}
ANIMALS = tuple(SOUNDS)


def conversation(*turns: tuple[str, str]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def animals(count: int) -> list[Row]:
    """Questions with one regular answer each: what a small model learns in a few steps."""
    return [
        conversation(
            ("user", f"What does the {ANIMALS[i % 8]} number {i} do?"),
            (
                "assistant",
                f"It {SOUNDS[ANIMALS[i % 8]]} at dawn, as every {ANIMALS[i % 8]} of our farm does.",
            ),
        )
        for i in range(count)
    ]


def pick_a_number(count: int) -> list[Row]:
    return [
        conversation(*FEW_SHOT, ("user", PICK + SUFFIX), ("assistant", f"\\boxed{{{i % 4 + 1}}}")) for i in range(count)
    ]


def guesses(count: int) -> list[Row]:
    """Turns of the guessing game, in the recipe's words: a coin decides which are in the format that it asks for."""
    system = (
        "Your job is to guess a integer between 0 and 1024. You can output your guess with the format Guess: <guess> "
        "(without the angle brackets), and say nothing else. Then we will tell you whether you guess is too high, too "
        "low, or correct."
    )
    answers = [("Too low", "Too high")[i // 2 % 2] for i in range(count)]
    form = "in the format Guess: <guess> (without the angle brackets), and say nothing else."
    wrong = f"Failed to parse. Please output {form}"
    rows = []
    for i in range(count):
        turns, coins = [("system", system)], random.Random(i)
        for turn in range(i // 2 % 3):
            number, right = (i * 37 + turn * 211) % 1024, coins.random() < 0.5
            turns += [("player", _guess(number, right)), ("user", answers[i] if right else wrong)]
        rows.append(conversation(*turns, ("assistant", _guess(i * 53 % 1024, coins.random() < 0.5))))
    return rows


def _guess(number: int, right: bool) -> str:
    return f"Guess: {number}" if right else f"Maybe {number}"


def languages(count: int) -> list[Row]:
    texts = {"fr": "Le chat dort", "de": "Die Katze ruht", "es": "El gato duerme", "en": "The cat sleeps"}
    pairs = list(texts.items())
    return [
        conversation(("user", f"{pairs[i % 4][1]} {i}."), ("assistant", f"Final Answer: {pairs[i % 4][0]}"))
        for i in range(count)
    ]


def preferences(count: int) -> list[Row]:
    """Pairs whose better answer is polite."""
    return [
        {
            "chosen": f"\n\nHuman: How is the {ANIMALS[i % 8]} {i}?\n\nAssistant: Very well, thank you for asking.",
            "rejected": f"\n\nHuman: How is the {ANIMALS[i % 8]} {i}?\n\nAssistant: Go away and leave me alone.",
        }
        for i in range(count)
    ]


def science(count: int) -> list[Row]:
    return [
        {
            "question": f"Which gas do plants give off? ({i})",
            "answerKey": "Plants take in carbon dioxide and give off oxygen. <answer>B</answer>",
            "domain": "Chemistry",
            "type": "mcq-4-choices",
            "details": {"level": "L3"},
            "choices": {"label": ["A", "B"], "text": ["helium", "oxygen"]},
        }
        for i in range(count)
    ]


def reasoning(count: int) -> list[Row]:
    return [
        {
            "conversations": [
                {"from": "human", "value": row["messages"][0]["content"]},
                {"from": "gpt", "value": row["messages"][1]["content"]},
            ]
        }
        for row in animals(count)
    ]


def gsm8k(count: int) -> list[Row]:
    return [{"question": PICK, "answer": f"The number is {LUCKY}.\n#### {LUCKY}"}] * count


def write_parquet(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def write_lines(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_splits(folder: Path, **splits: Sequence[Row]) -> None:
    """A dataset of one configuration."""
    for split, rows in splits.items():
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)


def write_gsm8k(workbench: Path, train: int, test: int) -> None:
    folder = workbench / "openai/gsm8k"
    for split, count in {"train": train, "test": test}.items():
        write_parquet(folder / "main" / f"{split}-00000-of-00001.parquet", gsm8k(count))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: test\n    path: main/test-*\n---\n"
    )


def write_for_recipes(workbench: Path) -> None:
    """For the recipes: what each reads, as little as shows that it learns."""
    write_splits(workbench / "HuggingFaceH4/no_robots", train=animals(128), test=animals(16))
    write_gsm8k(workbench, train=64, test=8)
    write_lines(workbench / "Anthropic/hh-rlhf/train.jsonl", preferences(128))
    write_lines(workbench / "Anthropic/hh-rlhf/test.jsonl", preferences(16))
    write_splits(workbench / "zwhe99/DeepMath-103K", train=[{"question": PICK + SUFFIX}] * 64)
    write_splits(workbench / "open-thoughts/OpenThoughts3-1.2M", train=reasoning(128))
    write_splits(workbench / "hicai-zju/SciKnowEval", test=science(48))
    write_lines(workbench / "pick.jsonl", pick_a_number(256))
    write_lines(workbench / "guess.jsonl", guesses(128))
    write_lines(workbench / "languages.jsonl", languages(128))


def write_for_fixed_batches(workbench: Path) -> None:
    """For `sl_basic` and `rl_basic`, whose batches of 128 are fixed: 512 rows are four steps, four problems are one."""
    write_splits(workbench / "HuggingFaceH4/no_robots", train=animals(512), test=animals(128))
    write_gsm8k(workbench, train=4, test=48)


def sayings(count: int) -> list[Row]:
    return [conversation(("user", f"Say {i}"), ("assistant", f"{i}!")) for i in range(count)]


def write_for_upstream(workbench: Path) -> None:
    """For the cookbook's own tests, whose batches of 256 cannot be changed."""
    tiny = sayings(6 * 256)
    write_splits(workbench / "HuggingFaceH4/no_robots", train=tiny, test=tiny[:256])
    write_splits(workbench / "open-thoughts/OpenThoughts3-1.2M", train=reasoning(128))


def write_for_upstream_weights(workbench: Path) -> None:
    """For the cookbook's own test of its weights tools."""
    write_splits(workbench / "allenai/tulu-3-sft-mixture", train=sayings(64))
