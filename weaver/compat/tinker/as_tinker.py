"""Makes `import tinker` mean weaver's. Nothing is written anywhere: it is a hook in this process's import system."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

NAME: Final = "tinker"
OURS: Final = __name__.rpartition(".")[0]


class Alias(Loader):
    """Loads a module by giving out the one that is there: `tinker.types` and weaver's are one object."""

    def __init__(self, ours: str) -> None:
        self._ours = ours
        self._own: dict[str, Any] = {}

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._ours)
        self._own = {"__spec__": module.__spec__, "__loader__": module.__loader__}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run. The import system wrote down where it came from; that stays what it was."""
        vars(module).update(self._own)


class TinkerIsWeavers(MetaPathFinder):
    """Finds `tinker` and everything below it, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != NAME and not fullname.startswith(f"{NAME}."):
            return None
        ours = f"{OURS}{fullname.removeprefix(NAME)}"
        found = importlib.util.find_spec(ours)
        if found is None:
            raise ModuleNotFoundError(f"No module named {fullname!r} in weaver's tinker ({OURS})", name=fullname)
        return ModuleSpec(fullname, Alias(ours), is_package=found.submodule_search_locations is not None)


def install() -> None:
    """From now on `import tinker` and `from tinker.x import y` give weaver's, in this process. Again does nothing.

    Raises RuntimeError when the vendor's package has been imported already: code that has it would go on using it.
    """
    imported = sys.modules.get(NAME)
    if imported is not None and imported is not sys.modules.get(OURS):
        raise RuntimeError(
            f"the package {NAME!r} was imported before, from {getattr(imported, '__file__', None)}: call install() "
            "first, in a fresh interpreter or notebook kernel"
        )
    if not any(isinstance(finder, TinkerIsWeavers) for finder in sys.meta_path):
        sys.meta_path.insert(0, TinkerIsWeavers())
