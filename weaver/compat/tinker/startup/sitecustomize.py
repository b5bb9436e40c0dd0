"""Run by every Python that starts with this folder on PYTHONPATH, which `weaver run` sets: makes `tinker` weaver's.

It stands before any other `sitecustomize`, so it runs the next one that there is.
"""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_the_next() -> None:
    """The `sitecustomize` that this one hides, under its own name."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def install() -> None:
    """Nothing where this Python has no weaver: it is not one that runs the program."""
    try:
        weavers = import_module("weaver.compat.tinker.as_tinker")
    except ImportError:
        return
    weavers.install()


install()
run_the_next()
