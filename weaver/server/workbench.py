"""The folder from which the cookbook's recipes run without a hub: `ORG/NAME/` for each model name they use.

The cookbook looks for a folder called like the model in the current directory before it asks a hub. Configuration and
tokenizer are copied there, everything else (weights) is linked.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weaver.compat.hub.files import tokenizer_files
from weaver.errors import AlreadyExists, InvalidInput

MARK: Final = ".weaver-workbench.json"
"""In each folder that this command wrote: only such a folder is replaced."""

SETTINGS: Final = "weaver.toml"
_SETTINGS_HEAD: Final = "# Written by `weaver workbench`: what `weaver run` loads for these names.\n[models]\n"

THINKING: Final = ("<think>", "</think>")
_NAME: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_THINKING_FAMILY: Final = re.compile(r"Qwen/Qwen3\.\d")
"""The cookbook's renderers for these models stop where <think> or </think> is more than one token."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that recipes use, the folder of the model that stands for it, and how `weaver serve` is told of it."""

    name: str
    folder: Path
    location: str


@dataclass(frozen=True, slots=True)
class Written:
    """What stands in the workbench for one alias. `renamed` maps spare tokens to what they are called in this copy;
    `location` is what serves the name with the same tokenizer."""

    alias: Alias
    folder: Path
    location: str
    linked: int
    renamed: Mapping[str, str]


def parse_alias(given: str, folder_of: Callable[[str, str], str]) -> Alias:
    """`NAME=FOLDER`. `folder_of(name, location)` says where a location lies. Raises InvalidInput for what cannot be."""
    name, _, location = given.partition("=")
    if not _NAME.fullmatch(name) or not location:
        raise InvalidInput(
            f"--alias {given!r} must be ORG/NAME=FOLDER: the name as the recipe writes it, and the model's folder or "
            "'demo' for the demo model"
        )
    folder = Path(folder_of(name, location))
    if not folder.is_dir():
        raise InvalidInput(f"--alias {given}: {location!r} is no folder; download the model and name its folder")
    if "tokenizer.json" not in (files := tokenizer_files(folder)) and not any(
        "vocab" in f or ".model" in f for f in files
    ):
        raise InvalidInput(f"--alias {given}: {folder} holds no tokenizer")
    return Alias(name, folder.resolve(), location if location == "demo" else str(folder.resolve()))


def write_workbench(workbench: Path, alias: Alias) -> Written:
    """Write `workbench/ORG/NAME` whole or not at all. Raises AlreadyExists where another's folder is in the way."""
    target = workbench / alias.name
    if target.exists() and not (target / MARK).is_file():
        raise AlreadyExists(f"{target} exists and is not of `weaver workbench`: remove it, or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".workbench-", dir=target.parent) as scratch:
        written = Path(scratch) / target.name
        linked = _copy(alias.folder, written)
        renamed = _rename_spare_tokens(alias, written)
        location = str(target.resolve()) if renamed else alias.location
        (written / MARK).write_text(json.dumps({"name": alias.name, "location": location}))
        if target.exists():
            shutil.rmtree(target)
        written.rename(target)
    return Written(alias, target, location, linked, renamed)


def write_settings(workbench: Path) -> bool:
    """Name every model of the workbench in its `weaver.toml`, unless that file is somebody else's; whether it did."""
    file = workbench / SETTINGS
    if file.exists() and not file.read_text().startswith(_SETTINGS_HEAD):
        return False
    marks = [json.loads(mark.read_text()) for mark in sorted(workbench.glob(f"*/*/{MARK}"))]
    file.write_text(
        _SETTINGS_HEAD + "".join(f"{json.dumps(one['name'])} = {json.dumps(one['location'])}\n" for one in marks)
    )
    return True


def _copy(source: Path, target: Path) -> int:
    """Copies of the tokenizer and configuration files, and links to every other one; how many are linked."""
    copied = tokenizer_files(source)
    for name, file in copied.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)
    others = [file for file in source.iterdir() if file.is_file() and file.name not in copied and file.name != MARK]
    for file in others:
        (target / file.name).symlink_to(file.resolve())
    return len(others)


def _rename_spare_tokens(alias: Alias, folder: Path) -> Mapping[str, str]:
    """Give a copied tokenizer <think> and </think> as single tokens, where the name's renderer needs them.

    Two special tokens that neither the chat template nor the configuration mentions give up their names. Ids stay.
    """
    file = folder / "tokenizer.json"
    if not _THINKING_FAMILY.match(alias.name) or not file.is_file():
        return {}
    tokenizer = json.loads(file.read_text())
    added = [token["content"] for token in tokenizer["added_tokens"]]
    if set(THINKING) <= set(added):
        return {}
    mentioned = "".join(
        other.read_text()
        for name in tokenizer_files(folder)
        if (other := folder / name) != file and other.suffix != ".txt"
    )
    spare = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    spare = [content for content in spare if json.dumps(content)[1:-1] not in mentioned]
    if len(spare) < len(THINKING):
        raise InvalidInput(
            f"--alias {alias.name}: the cookbook's renderer needs {' and '.join(THINKING)} as single tokens, and the "
            f"tokenizer in {alias.folder} has neither them nor two unused special tokens that could take their names"
        )
    renamed = dict(zip(spare[-len(THINKING) :], THINKING))
    file.write_text(json.dumps(_renamed(tokenizer, renamed), ensure_ascii=False))
    return renamed


def _renamed(tokenizer: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer with some added tokens called otherwise. Like Qwen's own, they are no special tokens then."""
    added = [
        token | {"content": names[token["content"]], "special": False} if token["content"] in names else token
        for token in tokenizer["added_tokens"]
    ]
    model = dict(tokenizer["model"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(token, token): number for token, number in model["vocab"].items()}
    return tokenizer | {"added_tokens": added, "model": model}
