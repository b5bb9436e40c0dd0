"""pyright reads a user's script the same with the vendor's types and with ours. `make test-types` runs it; `make test`
does not, for it installs pyright."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import weaver.compat.tinker as ours

SCRIPT = Path(__file__).with_name("user_script.py")
STUBS = Path(ours.__file__).with_name("stubs")
PYRIGHT = os.environ.get("WEAVER_TEST_PYRIGHT", "pyright")
LIBRARIES = {"theirs": {}, "ours": {"stubPath": str(STUBS)}}

# Lines that are wrong with either library, each with what pyright calls the mistake.
MISTAKES = {
    "tinker.AdamParams(learning_rate='high')": "reportArgumentType",
    "tinker.AdamParams(lr=1e-3)": "reportCallIssue",
    "tinker.Datum(tinker.ModelInput.empty(), {'weights': 1.0})": "reportArgumentType",
    "tinker.ServiceClient().create_lora_training_client('model', rank='high')": "reportArgumentType",
    "tinker.RestClient().list_training_runs(limit='all')": "reportArgumentType",
    "tinker.SampledProvenanceSpan('a', 0, 1)": "reportCallIssue",
    "tinker.TensorData([1], 'int8')": "reportArgumentType",
    "tinker.Sampler()": "reportAttributeAccessIssue",
}


def read(folder, library, code, mode="strict"):
    """What pyright says of `code`: pairs of line and rule."""
    (folder / "script.py").write_text(code)
    settings = {"include": ["script.py"], "typeCheckingMode": mode, "reportMissingTypeStubs": False}
    (folder / "pyrightconfig.json").write_text(json.dumps({**settings, **LIBRARIES[library]}))
    command = [PYRIGHT, "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.stdout.startswith("{"), done.stderr
    told = json.loads(done.stdout)["generalDiagnostics"]
    return [(each["range"]["start"]["line"], each.get("rule"), each["message"]) for each in told]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_users_script_has_no_error(tmp_path, library):
    assert read(tmp_path, library, SCRIPT.read_text()) == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_mistakes_are_found(tmp_path, library):
    code = "\n".join(["import tinker", *MISTAKES])
    found = read(tmp_path, library, code, mode="standard")
    assert [(line, rule) for line, rule, _ in found] == list(enumerate(MISTAKES.values(), 1))


def test_it_is_ours_that_is_read(tmp_path):
    code = "import tinker\nreveal_type(tinker.install)\nreveal_type(tinker.types.Datum)\n"
    told = [message for _, _, message in read(tmp_path, "ours", code)]
    assert told == ['Type of "tinker.install" is "() -> None"', 'Type of "tinker.types.Datum" is "type[Datum]"']
    assert "reportAttributeAccessIssue" in [rule for _, rule, _ in read(tmp_path, "theirs", code)]
