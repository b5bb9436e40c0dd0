"""pyright reads in a user's script of Weaver's API what mypy reads there (test_stubs.py). `make test-types` runs it."""

import json
import os
import subprocess
import sys

from .test_stubs import SCRIPT, stubs

PYRIGHT = os.environ.get("WEAVER_TEST_PYRIGHT", "pyright")


def test_a_users_script_has_the_types_it_says_and_no_error(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.read_text())
    settings = {"include": ["script.py"], "typeCheckingMode": "strict", "extraPaths": [str(stubs.ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings | {"reportMissingTypeStubs": False}))
    command = [PYRIGHT, "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.stdout.startswith("{"), done.stderr
    told = json.loads(done.stdout)["generalDiagnostics"]
    assert [each for each in told if each["severity"] != "information"] == []
    found = {each["range"]["start"]["line"]: each["message"].rpartition('" is "')[2][:-1] for each in told}
    lines = enumerate(SCRIPT.read_text().splitlines())
    assert found == {number: line.partition("  # ")[2] for number, line in lines if "reveal_type(" in line}
