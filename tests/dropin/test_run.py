"""`weaver run` and `install()`: `import tinker` means weaver's, in a program and in every Python it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OURS = "weaver.compat.tinker"
REPORT = "print(json.dumps([tinker.ServiceClient.__module__, tinker.__version__, sys.argv]))"


@pytest.fixture
def folder(tmp_path):
    """Where programs are written and run."""

    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    write.path = tmp_path
    return write


def run(*arguments, cwd, **environment):
    """What `weaver run` does with these, in a process of its own."""
    command = [str(Path(sys.executable).with_name("weaver")), "run", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=kept)


def last_line(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_program_gets_weavers_tinker_and_its_own_arguments(folder):
    program = folder("train.py", f"import json, sys, tinker\n{REPORT}\n")
    module, version, arguments = last_line(run(program, "--steps", "3", "-m", "x", cwd=folder.path))
    assert module.startswith(OURS)
    assert version == "0.38.0"
    assert arguments == [str(program), "--steps", "3", "-m", "x"]


def test_a_module_is_run_as_python_does_it(folder):
    folder("package/__init__.py", "")
    folder("package/helper.py", "WHO = __name__\n")
    found = "[__name__, __spec__.name, WHO, sys.argv[1:]]"
    text = f"import json, sys, tinker\nfrom package.helper import WHO\nprint(json.dumps({found}))\n"
    folder("package/recipe.py", text)
    found = last_line(run("-m", "package.recipe", "rank=4", "--help", cwd=folder.path))
    assert found == ["__main__", "package.recipe", "package.helper", ["rank=4", "--help"]]


def test_every_submodule_is_the_same_object_as_weavers(folder):
    text = """
import json, tinker, tinker.types.tensor_data
from tinker.types.lora_config import LoraConfig
from tinker.lib.public_interfaces.rest_client import RestClient
from tinker.lib.public_interfaces import APIFuture
import weaver.compat.tinker as ours, weaver.compat.tinker.types.tensor_data
print(json.dumps([
    tinker is ours, tinker.types is ours.types, tinker.types.tensor_data is ours.types.tensor_data,
    LoraConfig is ours.LoraConfig, RestClient is ours.RestClient, APIFuture is ours.APIFuture,
    ours.__spec__.name == ours.__name__, ours.types.tensor_data.__spec__.name == ours.types.tensor_data.__name__,
]))
"""
    assert last_line(run(folder("same.py", text), cwd=folder.path)) == [True] * 8


def test_what_weavers_tinker_has_not_is_missing_and_not_the_vendors(folder):
    text = """
import json
try:
    import tinker.resources
except ModuleNotFoundError as error:
    print(json.dumps(str(error)))
"""
    assert "weaver's tinker" in last_line(run(folder("missing.py", text), cwd=folder.path))


CHILDREN = """
import json, multiprocessing, subprocess, sys
from concurrent.futures import ProcessPoolExecutor

class Point:
    def __init__(self, x):
        self.x = x

def work(point):
    import tinker
    return [point.x, tinker.ServiceClient.__module__]

if __name__ == "__main__":
    code = "import tinker; print(tinker.ServiceClient.__module__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        spawned = pool.submit(work, Point(3)).result()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.apply(work, (Point(4),))
    print(json.dumps([child, spawned, forked]))
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_children_get_it_too_and_classes_of_the_program_travel(folder, as_module):
    program = folder("children.py", CHILDREN)
    child, spawned, forked = last_line(run(*(["-m", "children"] if as_module else [program]), cwd=folder.path))
    assert child.startswith(OURS)
    assert [spawned[0], forked[0]] == [3, 4]
    assert spawned[1].startswith(OURS)
    assert forked[1].startswith(OURS)


def test_the_status_of_the_program_is_that_of_the_command(folder):
    assert run(folder("fails.py", "raise SystemExit(7)\n"), cwd=folder.path).returncode == 7
    done = run(folder("raises.py", "import tinker\n1 / 0\n"), cwd=folder.path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_a_program_that_is_not_there_is_told(folder):
    done = run("nothing.py", cwd=folder.path)
    assert done.returncode == 2
    assert "nothing.py" in done.stderr


def test_another_sitecustomize_is_run_as_well(folder):
    folder("site/sitecustomize.py", "import sys\nsys.customized = True\n")
    found = "[sys.customized, sitecustomize.__file__, tinker.__name__]"
    text = f"import json, sys, sitecustomize, tinker\nprint(json.dumps({found}))\n"
    done = run(folder("custom.py", text), cwd=folder.path, PYTHONPATH=str(folder.path / "site"))
    assert last_line(done) == [True, str(folder.path / "site/sitecustomize.py"), OURS]


def test_starting_it_costs_no_framework(folder):
    heavy = "{'torch', 'transformers', 'sqlalchemy', 'fastapi', 'pydantic'}"
    text = f"import json, sys, tinker\nprint(json.dumps(sorted({heavy} & set(sys.modules))))\n"
    assert last_line(run(folder("light.py", text), cwd=folder.path)) == []


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_install_changes_this_process_and_may_be_called_again(tmp_path):
    code = "import json, weaver.compat.tinker as ours\nours.install()\nours.install()\nimport tinker\nours.install()\n"
    assert last_line(python(f"{code}print(json.dumps(tinker is ours))", tmp_path)) is True


def test_install_after_the_vendors_package_is_refused(tmp_path):
    done = python("import tinker\nfrom weaver.compat.tinker import install\ninstall()", tmp_path)
    assert done.returncode == 1
    assert "was imported before" in done.stderr
    assert "fresh interpreter" in done.stderr


def test_without_it_tinker_is_the_vendors(tmp_path):
    done = python("import json, tinker\nprint(json.dumps(tinker.__file__))", tmp_path)
    assert "site-packages" in last_line(done)
