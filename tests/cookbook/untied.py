"""The demo model with an output layer of its own: the same numbers, in the shape that most larger models have."""

import json
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from weaver_peft.demo_model import demo_model_folder


def write_untied(folder: Path) -> Path:
    """`folder`, written once, whole or not at all. The output layer is a copy of the embedding, so nothing computes
    otherwise; but an adapter of it is one of the output layer alone."""
    if folder.is_dir():
        return folder
    demo = demo_model_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        written = Path(scratch) / folder.name
        shutil.copytree(demo, written, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        weights = load_file(demo / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, written / "model.safetensors", {"format": "pt"})
        config = json.loads((demo / "config.json").read_text())
        (written / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2))
        written.rename(folder)
    return folder
