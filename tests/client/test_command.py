"""The commands that ask a server: what they print is what its clients get, and what it refuses is told."""

import hashlib
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import weaver
from weaver.operations import build_operation_handle
from weaver.server import cli

from .conftest import MODEL, new_model

KEY = "tml-for-commands"
ARTIFACT = "00000000-0000-4000-8000-000000000009"
FAILED = {"id": "made", "status": "error", "error_code": "disk_full", "error_message": "nothing is left"}


@pytest.fixture(scope="module")
def url(serve):
    return serve(api_keys=[KEY])[0]


@pytest.fixture(scope="module")
def service(url):
    with weaver.ServiceClient(base_url=url, api_key=KEY) as client:
        yield client


@pytest.fixture(scope="module")
def trainer(service):
    return new_model(service)


@pytest.fixture(scope="module")
def kept(trainer):
    return trainer.save_state(name="kept")


def run(*arguments, **environment):
    """Without what the tests' own environment says of servers."""
    unset = {"WEAVER_BASE_URL": None, "WEAVER_API_KEY": None, "WEAVER_ORGANIZATION_ID": None}
    return CliRunner(env={**unset, **environment}).invoke(cli.weaver, [str(one) for one in arguments])


@pytest.fixture
def printed(url):
    """What a command that succeeds prints."""

    def ask(*arguments):
        done = run(*arguments, WEAVER_BASE_URL=url, WEAVER_API_KEY=KEY)
        assert done.exit_code == 0, done.output
        return done.stdout

    return ask


@pytest.fixture
def refused(url):
    """What is said of a command that fails, with nothing on the standard output and the status 1."""

    def ask(*arguments, key=KEY):
        done = run(*arguments, WEAVER_BASE_URL=url, WEAVER_API_KEY=key)
        assert (done.exit_code, done.stdout) == (1, "")
        return done.stderr

    return ask


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("list", "models"), lambda service, model: service.list_models()),
        (("list", "training-runs"), lambda service, model: service.list_training_runs()),
        (("show", "model", "MODEL"), lambda service, model: service.get_model(model)),
        (("show", "training-run", "MODEL"), lambda service, model: service.get_training_run(model)),
        (
            ("list", "supported-models"),
            lambda service, model: [one.to_dict() for one in service.list_supported_model_details()],
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_json_is_what_a_client_gets(printed, service, trainer, kept, arguments, asked):
    given = [trainer.model_id if one == "MODEL" else one for one in arguments]
    found = json.loads(printed(*given, "--format", "json"))
    assert found == asked(service, trainer.model_id)
    assert trainer.model_id in json.dumps(found) or MODEL in json.dumps(found)


@pytest.mark.parametrize("command", [("list", "organizations"), ("organizations", "list")])
def test_organizations_are_told_by_id_name_and_role(printed, service, command):
    [organization] = service.list_organizations()
    expected = {"id": organization["id"], "name": organization["name"], "role": organization["current_user_role"]}
    assert json.loads(printed(*command, "-f", "json")) == [expected]


@pytest.mark.parametrize("command", [("list", "projects"), ("projects", "list")])
def test_projects_are_those_of_the_organization_that_is_named(printed, refused, service, command):
    scope = service.resolve_scope()
    for named in ([], ["--organization-id", scope["organization"]["id"]], ["--organization", "local"]):
        [project] = json.loads(printed(*command, "-f", "json", *named))
        assert project["id"] == scope["project"]["id"]
    for option in ("--organization", "--org-id"):
        assert "there is no organization 'elsewhere' here" in refused(*command, option, "elsewhere")


def test_a_scope_is_resolved(printed, refused, service):
    assert json.loads(printed("scope", "resolve", "--project", "default")) == service.resolve_scope(project="default")
    assert "there is no project 'elsewhere' here" in refused("scope", "resolve", "--project", "elsewhere")


def test_a_table_has_a_row_for_each_with_nothing_cut(printed, trainer, kept):
    heading, row, *_, total = printed("list", "models", "--limit", 1).splitlines()
    assert heading.split()[:2] == ["id", "session"]
    assert row.split() == [
        trainer.model_id, trainer.session_id, MODEL, "lora", "(rank=4)", "running", "0", row.split()[-1],
    ]  # fmt: skip
    assert total == "1 of 1, after 0"
    shown = printed("show", "training-run", trainer.model_id)
    assert f"base_model: {MODEL}\n" in shown
    assert '"rank": 4' in shown
    assert kept.path in shown


def test_pages_are_the_servers(printed, trainer):
    assert trainer.model_id in printed("list", "training-runs", "--limit", 3)
    page = json.loads(printed("list", "training-runs", "--limit", 7, "--offset", 5, "-f", "json"))
    assert page == {"items": [], "pagination": {"limit": 7, "offset": 5, "total_count": 1}}


def test_supported_models_are_chosen_by_mode(printed, refused):
    assert printed("list", "supported-models", "--format", "names") == f"{MODEL}\n"
    assert printed("list", "supported-models").splitlines()[1].split() == [MODEL, "LoRA", *["$0", "/", "token"] * 4]
    assert json.loads(printed("list", "supported-models", "--mode", "full-ft", "-f", "json")) == []
    assert "no organization 'elsewhere'" in refused("list", "supported-models", "--organization-id", "elsewhere")
    [lora] = json.loads(printed("list", "supported-models", "--mode", "lora", "-f", "json"))
    assert [one["mode"] for one in lora["training_modes"]] == ["lora"]


def test_a_lifetime_is_set_and_lifted(printed, trainer):
    path = trainer.save_state(name="mortal").path
    found = lambda: next(one for one in trainer.list_checkpoints() if one.path == path)  # noqa: E731
    assert printed("checkpoint", "set-ttl", trainer.model_id, path, 7200) == f"{path} expires in 7200 seconds\n"
    assert found().ttl_seconds == pytest.approx(7200, abs=60)
    assert "until it is deleted" in printed("checkpoint", "set-ttl", trainer.model_id, path, "--remove")
    assert found().ttl_seconds is None
    for wrong in (("7200", "--remove"), ()):
        done = run("checkpoint", "set-ttl", trainer.model_id, path, *wrong, "--base-url", "http://127.0.0.1:9")
        assert done.exit_code == 2
        assert "give either SECONDS or --remove" in done.stderr


def test_an_export_is_printed_and_downloaded(printed, refused, kept, tmp_path):
    for option, kind in (((), "hf_adapter"), (("--merge-adapter", "--ttl", 7200), "hf_model")):
        artifact = json.loads(printed("checkpoint", "export", kept.path, *option))
        assert (artifact["kind"], artifact["checkpoint_id"]) == (kind, kept.id)
        assert artifact["ttl_seconds"] == (7200 if option else 604_800)
        assert json.loads(printed("checkpoint", "export", kept.id, *option)) == artifact, "there is one already"
        folder = tmp_path / kind
        assert printed("checkpoint", "download", artifact["uri"], "-o", folder) == f"{folder}\n"
        written = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        assert written == {file["name"]: file["sha256"] for file in artifact["manifest"]["files"]}
    assert "disambiguate" in refused("checkpoint", "download", kept.path, "-o", tmp_path / "both")
    printed("checkpoint", "download", kept.path, "-o", tmp_path / "one", "--kind", "hf_adapter")
    assert (tmp_path / "one" / "adapter_model.safetensors").exists()


def test_an_export_that_nobody_waits_for_goes_on(printed, service, trainer):
    path = trainer.save_state(name="unwatched").path
    told = json.loads(printed("checkpoint", "export", path, "--no-wait"))
    artifact = build_operation_handle(service.http, {"id": told["operation_id"]}).result()
    assert artifact["status"] == "completed"
    forced = json.loads(printed("checkpoint", "export", path, "--force"))
    assert forced["id"] != artifact["id"]


def test_deployments_come_and_go(printed, refused, service, kept):
    made = json.loads(printed("deployment", "create", kept.path, "--name", "by-command"))
    assert (made["name"], made["status"], made["checkpoint_id"]) == ("by-command", "running", kept.id)
    assert json.loads(printed("deployment", "get", made["id"])) == made
    assert made in json.loads(printed("deployment", "list", "--format", "json"))
    assert made["endpoint"] in printed("deployment", "list")
    assert "by-command" in refused("deployment", "create", kept.path, "--name", "by-command")
    assert "replicas is 2" in refused("deployment", "create", kept.path, "--name", "two", "--replicas", 2)
    taken = json.loads(printed("deployment", "create", kept.id, "--name", "by-command", "--overwrite", "--no-wait"))
    newer = build_operation_handle(service.http, {"id": taken["operation_id"]}).result()
    assert service.get_deployment(made["id"]).status == "stopped"
    assert json.loads(printed("deployment", "delete", newer["id"]))["status"] == "stopped"
    again = refused("deployment", "delete", newer["id"])
    assert again.startswith(
        "Error: the deployment 'by-command' is stopped already (already_stopped, HTTP 409, request "
    )


def test_a_refusal_says_why_and_which_request_it_was(refused):
    told = refused("show", "model", "nothing")
    assert told.startswith("Error: there is no training run 'nothing' here (not_found, HTTP 404, request ")
    assert "limit is '0'" in refused("list", "models", "--limit", 0)
    assert "checkpoint id must be a UUID, got 'nothing'" in refused("checkpoint", "export", "nothing")
    assert "deployment id must be a UUID" in refused("deployment", "get", "nothing")


def test_a_key_is_given_or_set_and_asked_for(printed, refused, url):
    told = refused("list", "models", key="tml-another")
    assert "give --api-key, or set WEAVER_API_KEY (unauthorized, HTTP 401" in told
    assert run("list", "models", "--base-url", url, "--api-key", KEY).exit_code == 0


def test_a_command_without_a_server_says_how_to_name_one():
    done = run("list", "models")
    assert done.exit_code == 2
    assert "give --base-url http://..., or set WEAVER_BASE_URL" in done.stderr
    done = run("list", "models", "--base-url", "localhost:8000")
    assert done.exit_code == 2
    assert "'localhost:8000' must begin with http:// or https://" in done.stderr


def test_a_server_that_does_not_answer_is_given_up_at_once(recorder):
    silent = recorder(lambda *request: None)
    done = run("list", "models", "--base-url", silent.url)
    assert done.exit_code == 1
    assert f"no answer from {silent.url}" in done.stderr
    assert len(silent.asked) == 1


def test_files_that_do_not_come_are_told_of(recorder, monkeypatch, tmp_path):
    monkeypatch.setattr("weaver.client.downloads._FIRST_DELAY", 0)

    def answer(method, path, headers, body):
        if path.startswith("/files"):
            return None
        file = {"name": "weights", "url": f"http://{headers['Host']}/files/weights", "size": 3, "sha256": "0" * 64}
        return 200, {}, json.dumps({"files": [file]}).encode()

    asked = recorder(answer)
    command = ("checkpoint", "download", ARTIFACT, "-o", tmp_path, "--base-url", asked.url)
    done = run(*command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"no answer from {asked.url}: weights: " in done.stderr


def test_what_nobody_waits_for_is_not_waited_for(recorder):
    asked = recorder(lambda *request: (200, {}, b'{"id": "made", "status": "pending"}'))
    for command in (
        ("checkpoint", "export", ARTIFACT),
        ("deployment", "create", ARTIFACT, "--name", "a"),
        ("deployment", "delete", ARTIFACT),
    ):
        told = json.loads(run(*command, "--no-wait", "--base-url", asked.url).stdout)
        assert told == {"operation_id": "made", "status": "pending"}
    assert not [path for _, path, *_ in asked.asked if "operations" in path]


def test_an_operation_that_fails_fails_the_command(recorder):
    def answer(method, path, headers, body):
        known = {"id": "made", "status": "pending"} if "operations" not in path else FAILED
        return 200, {}, json.dumps(known).encode()

    asked = recorder(answer)
    done = run("checkpoint", "export", ARTIFACT, "--base-url", asked.url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("waiting for operation made\n")
    assert "disk_full: nothing is left" in done.stderr


def test_a_command_begins_no_session(recorder):
    asked = recorder(lambda *request: (200, {}, b'{"items": [], "pagination": {"total_count": 0, "offset": 0}}'))
    assert run("list", "models", "--base-url", asked.url).exit_code == 0
    assert [(method, path.partition("?")[0]) for method, path, *_ in asked.asked] == [
        ("GET", "/api/v1/organizations"),
        ("GET", "/api/v1/models"),
    ]


def test_what_a_server_says_is_printed_as_it_is(recorder):
    """Names in brackets are no instructions to the terminal."""
    odd = {"id": "[bold]id[/bold]", "base_model": ":smile:", "training_mode": None}
    page = json.dumps({"items": [odd], "pagination": {"total_count": 1, "offset": 0}}).encode()
    asked = recorder(lambda *request: (200, {}, page))
    row = run("list", "training-runs", "--base-url", asked.url).stdout.splitlines()[1]
    assert row.split() == ["[bold]id[/bold]", ":smile:", "-", "-", "-"]


def test_the_command_loads_the_client_only_for_those_that_ask():
    code = "import sys, weaver.server.cli; print('httpx' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n", done.stderr
