"""Which files of a model's folder are its tokenizer and configuration: the ones that may be handed out."""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Final

PATTERNS: Final[Sequence[str]] = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)


def is_tokenizer_file(name: str) -> bool:
    """Whether `name`, a path within a model's folder, is of its tokenizer or configuration. Weights never are."""
    slashes = name.count("/")
    return any(fnmatchcase(name, pattern) and slashes == pattern.count("/") for pattern in PATTERNS)


def folder_of(location: str) -> Path | None:
    """The folder that a model's tokenizer lies in: `location` itself, or the hub's cache, filled where the hub can be
    reached. None where neither has it."""
    if Path(location).is_dir():
        return Path(location)
    try:
        return Path(import_module("huggingface_hub").snapshot_download(location, allow_patterns=list(PATTERNS)))
    except (ModuleNotFoundError, OSError, ValueError):
        return None


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The tokenizer and configuration files that a model's folder has, by their path within it."""
    found = [file for file in (*folder.glob("*"), *folder.glob("*/*")) if file.is_file()]
    names = {file.relative_to(folder).as_posix(): file for file in found}
    return {name: names[name] for name in sorted(names) if is_tokenizer_file(name)}


def digest(file: Path) -> str:
    """The sha256 of what the file holds now."""
    stat = file.stat()
    return _digest(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _digest(file: Path, _mtime_ns: int, _size: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def commit_of(files: dict[str, Path]) -> str:
    """A revision of 40 hex digits that changes when, and only when, a file does."""
    lines = (f"{name} {digest(file)}\n" for name, file in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]
