"""What an import may cost: naming weaver, or listing its plugins, loads no framework."""

import json
import subprocess
import sys
from importlib.metadata import distribution

FRAMEWORKS = {"torch", "transformers", "peft", "tokenizers", "safetensors", "vllm", "tinker"}
HEAVY = FRAMEWORKS | {"numpy", "fastapi", "pydantic", "sqlalchemy", "uvicorn", "google.protobuf"}


def run(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(statement: str) -> set[str]:
    return set(json.loads(run(f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))")))


def test_importing_weaver_loads_nothing_heavy():
    assert modules_after("import weaver") & HEAVY == set()


def test_importing_weaver_takes_less_than_50_milliseconds():
    code = "import time\nstart = time.perf_counter()\nimport weaver\nprint(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(5)) < 0.05


def test_listing_plugins_loads_no_framework():
    plugins = [entry.value for entry in distribution("weaver-train").entry_points if entry.group == "weaver"]
    assert {"weaver.plugins.losses", "weaver.plugins.echo", "weaver_peft"} <= set(plugins)
    assert modules_after(f"import {', '.join(plugins)}") & FRAMEWORKS == set()


def test_the_errors_load_nothing_heavy():
    assert modules_after("import weaver.errors") & HEAVY == set()
