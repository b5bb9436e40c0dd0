"""`python -m weaver_nexrl.tokenizer MODEL FOLDER`: the tokenizer of a model's folder, as transformers 4 loads it too.

NexRL needs transformers 4, and reads prompts with the tokenizer on its own machine. transformers 5 writes tokenizers
under a class name that version 4 does not know; tokens and chat template are the same.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Final

FILES: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def write(model: Path, folder: Path) -> None:
    """Raises FileNotFoundError where the model's folder has no tokenizer."""
    settings = json.loads((model / "tokenizer_config.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    told = settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the folder of the model that is served")
    parser.add_argument("folder", type=Path, help="where the tokenizer is written")
    asked = parser.parse_args()
    write(asked.model, asked.folder)


if __name__ == "__main__":
    main()
