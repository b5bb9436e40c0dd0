"""What importing our tinker costs: nothing heavy before a name needs it, and torch never by itself."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "fastapi", "numpy", "pydantic", "httpx", "sqlalchemy", "tinker", "google.protobuf"}


def run(code):
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(statement):
    return set(json.loads(run(f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))")))


def test_the_import_loads_nothing_heavy():
    assert modules_after("import weaver.compat.tinker as tinker") & HEAVY == set()


def test_the_import_takes_less_than_300_milliseconds_with_the_interpreter():
    code = "import time\nstart = time.perf_counter()\nimport weaver.compat.tinker\nprint(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "name", ["Datum", "TensorData", "types", "BadRequestError", "ServiceClient", "auth", "Timeout"]
)
def test_no_name_loads_torch_the_server_or_the_sdk(name):
    loaded = modules_after(f"import weaver.compat.tinker as tinker\ntinker.{name}")
    assert loaded & {"torch", "transformers", "fastapi", "sqlalchemy", "tinker"} == set()


def test_types_and_clients_take_less_than_a_second_of_the_processor():
    code = (
        "import time\nstart = time.process_time()\nimport weaver.compat.tinker as tinker\n"
        "tinker.types, tinker.ServiceClient, tinker.APIError\nprint(time.process_time() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) < 1.0


def test_data_work_without_torch():
    code = (
        "import sys\nsys.modules['torch'] = None\nimport weaver.compat.tinker as tinker\n"
        "tensor = tinker.TensorData([5.0], 'float32', [2, 3], [0, 0, 1], [2])\n"
        "print(tensor.tolist(), tinker.Datum(tinker.ModelInput.from_ints([1]), {'weights': [1]}).loss_fn_inputs)"
    )
    assert run(code).startswith("[[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]] {'weights': TensorData(")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Sampler'"):
        __import__("weaver.compat.tinker").compat.tinker.Sampler  # noqa: B018
