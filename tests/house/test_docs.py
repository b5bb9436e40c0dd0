"""What the documents say, checked."""

import inspect
import re
from pathlib import Path

from weaver import hookspecs

ROOT = Path(__file__).parents[2]
COMMAND = r"(?:^|`)make ([a-z-]+)\b(?=`| +#)"
README = (ROOT / "README.md").read_text()


def test_the_readmes_program_is_the_example_that_can_be_run():
    [program] = re.findall(r"<!-- examples/sft.py -->\n```python\n(.*?)```", README, re.DOTALL)
    assert program == (ROOT / "examples/sft.py").read_text()


def test_every_path_in_the_readmes_tree_exists():
    paths = re.findall(r"`((?:weaver|backends|examples|benchmarks|docs)/[\w./]*)`", README)
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_make_target_that_a_document_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for document in documents for name in re.findall(COMMAND, document.read_text(), re.MULTILINE)}
    assert {"demo", "test", "lint", "bench"} <= named
    assert named <= targets


def test_every_hook_has_its_signature_as_a_heading():
    text = (ROOT / "docs/plugins.md").read_text()
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("weaver_"):
            returned = str(inspect.signature(hook)).split("[")[1].rstrip("]").rpartition(".")[2]
            assert f"## `{name}() -> Iterable[{returned}]`" in text
