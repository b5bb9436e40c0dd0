"""Writes the beginning of a plugin: a package whose tests pass at once."""

import keyword
import re
from pathlib import Path
from string import Template
from typing import Final

from weaver.checkpoints import write_beside
from weaver.errors import AlreadyExists, InvalidInput

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FILES: Final = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "${module}.py": "module.py.txt",
    "tests/test_${module}.py": "test.py.txt",
}


def write_loss_package(name: str, directory: Path | None) -> Path:
    """Write a distribution with the loss `name` into a new or empty directory, whole or not at all; returns it.

    Raises InvalidInput for a name that Python could not import, AlreadyExists where something lies there.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InvalidInput(f"the name {name!r} must be lower-case letters, digits and underscores, a letter first")
    words = {"name": name, "module": f"weaver_{name}", "package": f"weaver-{name.replace('_', '-')}"}
    target = (directory or Path(words["package"])).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AlreadyExists(f"{target} is there already and not empty; nothing was written")
    templates = Path(__file__).parent

    def write(folder: Path) -> None:
        for path, template in _FILES.items():
            file = folder / Template(path).substitute(words)
            file.parent.mkdir(exist_ok=True)
            file.write_text(Template((templates / template).read_text()).substitute(words))

    write_beside(target, write)
    return target
