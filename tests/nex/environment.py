"""The unmodified SDK `nex-weaver`, in an environment of its own: its import package is called `weaver`, like ours."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"
PYTHON = ROOT / ".venvs" / "nex-1.19.2" / "bin" / "python"
SMOL, TINY = "HuggingFaceTB/SmolLM2-135M-Instruct", "tiny/llama"
KEY = "tml-nex-check"


def checks():
    """The files that run inside, in their order: the last asks what the others have called."""
    order = ("learning", "checkpoints", "numbers", "sampling", "exports", "service", "surface")
    files = [INSIDE / f"check_{name}.py" for name in order]
    assert sorted(files) == sorted(INSIDE.glob("check_*.py"))
    return files
