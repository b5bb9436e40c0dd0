"""Size is a smell: what is too long to read at once is refused here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def product_files() -> list[Path]:
    """Every Python file that is shipped; tests may be longer, and what protoc wrote nobody reads."""
    files = [file for part in ("weaver", "backends", "integrations") for file in (ROOT / part).rglob("*.py")]
    return sorted(file for file in files if "tests" not in file.parts and not file.name.endswith("_pb2.py"))


def functions(source: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def missing_annotations(function: Function) -> list[str]:
    """The parameters without an annotation, and "return" where the function says not what it returns."""
    positional = [*function.args.posonlyargs, *function.args.args]
    if positional and positional[0].arg in {"self", "cls"}:
        positional = positional[1:]
    rest = [function.args.vararg, function.args.kwarg]
    parameters = [*positional, *function.args.kwonlyargs, *(one for one in rest if one is not None)]
    missing = [parameter.arg for parameter in parameters if parameter.annotation is None]
    return missing if function.returns is not None else [*missing, "return"]


def test_there_are_files_to_check():
    names = {str(file.relative_to(ROOT)) for file in product_files()}
    assert {"weaver/errors.py", "backends/weaver_peft/__init__.py"} <= names


@pytest.mark.parametrize("file", product_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_fits_in_the_head(file):
    source = file.read_text()
    assert len(source.splitlines()) <= MOST_LINES_OF_A_FILE
    long = {function.name: lines_of(function) for function in functions(source)}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("file", product_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_function_says_what_it_takes_and_gives(file):
    missing = {f"{one.name}:{one.lineno}": missing_annotations(one) for one in functions(file.read_text())}
    assert {name: what for name, what in missing.items() if what} == {}


def test_the_check_sees_what_it_shall_see():
    (function,) = functions("def f(self, a, *b, c: int, **d):\n    pass\n")
    assert missing_annotations(function) == ["a", "b", "d", "return"]
    assert lines_of(function) == 2
