"""The command of the unmodified SDK and ours against one server: the same JSON, the same exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import weaver

sys.path.insert(0, str(Path(__file__).parent))

from environment import KEY, PYTHON, TINY

COMMANDS = {"theirs": [PYTHON.with_name("weaver")], "ours": [sys.executable, "-m", "weaver.server.cli"]}
# Ours names both options wrong by the status that click has for it.
UNLIKE = {("checkpoint", "set-ttl", "MODEL", "PATH"): 2, ("checkpoint", "set-ttl", "MODEL", "PATH", "9", "--remove"): 2}

SAME = [
    ("list", "organizations"),
    ("organizations", "list"),
    ("list", "projects"),
    ("projects", "list", "--organization", "local"),
    ("list", "supported-models"),
    ("list", "supported-models", "--mode", "full-ft"),
    ("list", "supported-models", "--mode", "lora", "--organization-id", "local"),
    ("list", "training-runs", "--limit", "1", "--offset", "1"),
    ("list", "models", "-l", "2"),
    ("show", "training-run", "MODEL"),
    ("show", "model", "MODEL"),
    ("deployment", "list"),
]
PLAIN = [
    ("scope", "resolve", "--organization", "local", "--project", "default"),
    ("deployment", "get", "DEPLOYMENT"),
    ("checkpoint", "export", "PATH"),
    ("checkpoint", "export", "CHECKPOINT", "--no-wait"),
    ("list", "supported-models", "--format", "names"),
]
REFUSED = [
    ("show", "model", "nothing"),
    ("show", "training-run", "nothing"),
    ("list", "models", "--limit", "0"),
    ("list", "projects", "--organization", "elsewhere"),
    ("list", "models", "--api-key", "tml-another"),
    ("scope", "resolve", "--project", "elsewhere"),
    ("checkpoint", "set-ttl", "MODEL", "PATH", "5"),
    ("checkpoint", "export", "nothing"),
    ("checkpoint", "download", "nothing", "-o", "nowhere"),
    ("deployment", "create", "PATH", "--name", "side-by-side"),
    ("deployment", "create", "PATH", "--name", "many", "--replicas", "9"),
    ("deployment", "get", "nothing"),
    ("list", "models", "--format", "yaml"),
    ("deployment", "create", "PATH"),
    ("list", "projects", "--organization-id", "one", "--organization", "two"),
    *UNLIKE,
]


@pytest.fixture(scope="module")
def named(url):
    """What stands for MODEL, PATH ... in the commands: a model with a checkpoint that is exported and deployed."""
    with weaver.ServiceClient(base_url=url, api_key=KEY) as service:
        trainer = service.create_model(base_model=TINY, lora_config={"rank": 4})
        service.create_model(base_model=TINY, lora_config={"rank": 2})
        kept = trainer.save_state(name="side-by-side")
        trainer.export_weights(checkpoint=kept)
        deployed = trainer.deploy_checkpoint(kept, name="side-by-side")
    return {"MODEL": trainer.model_id, "PATH": kept.path, "CHECKPOINT": kept.id, "DEPLOYMENT": deployed.id}


@pytest.fixture(scope="module")
def both(url, named, tmp_path_factory):
    """Runs a command of each: two CompletedProcesses."""
    plain = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("WEAVER")
    }
    environment = {**plain, "WEAVER_BASE_URL": url, "WEAVER_API_KEY": KEY, "COLUMNS": "400"}
    ours = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}

    def run(arguments):
        folder = tmp_path_factory.mktemp("commands")
        given = [named.get(one, one) for one in arguments]
        for whose, command in COMMANDS.items():
            more = ours if whose == "ours" else {}
            yield subprocess.run(
                [*command, *given], cwd=folder, env=environment | more, capture_output=True, text=True, timeout=250
            )

    return run


def answer(text):
    """The JSON in what was printed; theirs says a line before it."""
    return json.loads(text[min(found for found in map(text.find, "[{") if found >= 0) :])


@pytest.mark.parametrize("arguments", SAME, ids=" ".join)
def test_lists_and_records_are_the_same_json(both, named, arguments):
    theirs, ours = both([*arguments, "--format", "json"])
    assert (theirs.returncode, ours.returncode) == (0, 0), theirs.stdout + ours.stderr
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)


@pytest.mark.parametrize("arguments", PLAIN, ids=" ".join)
def test_what_is_printed_without_a_choice_is_the_same(both, named, arguments):
    theirs, ours = both(arguments)
    assert (theirs.returncode, ours.returncode) == (0, 0), theirs.stdout + ours.stderr
    if "names" in arguments:
        assert ours.stdout == theirs.stdout
    else:
        assert json.loads(ours.stdout) == answer(theirs.stdout)


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_one_refuses_the_other_refuses(both, named, arguments):
    theirs, ours = both(arguments)
    assert theirs.returncode == (1 if arguments in UNLIKE else ours.returncode)
    assert ours.returncode == UNLIKE.get(arguments, ours.returncode) > 0
    assert ours.stdout == ""
    assert "Error: " in ours.stderr


def test_both_export_download_and_take_down_the_same(both, named):
    shorter = [
        ("checkpoint", "export", "PATH", "--merge-adapter", "--force"),
        ("checkpoint", "download", "PATH", "-o", "out", "--kind", "hf_model"),
        ("checkpoint", "set-ttl", "MODEL", "PATH", "7200"),
        ("checkpoint", "set-ttl", "MODEL", "PATH", "--remove"),
        ("deployment", "create", "PATH", "--name", "side-by-side", "--overwrite", "--no-wait"),
    ]
    for arguments in shorter:
        theirs, ours = both(arguments)
        assert (theirs.returncode, ours.returncode) == (0, 0), theirs.stdout + ours.stderr
        if "export" in arguments:
            merged = [answer(theirs.stdout), json.loads(ours.stdout)]
            assert merged[0].keys() == merged[1].keys()
            assert merged[0]["manifest"] == merged[1]["manifest"]
