"""Sessions, lists, accounts, refusals, and the command line."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest
import weaver.cli
from click.testing import CliRunner
from support import SMOL, TINY, adam, sentence

from weaver import AsyncServiceClient, ServiceClient, WeaverAPIError, types
from weaver.operations import WeaverOperationError

SEEDED = types.LoraConfig(rank=8, seed=3)


@pytest.fixture(scope="module")
def model(service):
    return service.create_model(base_model=TINY, user_metadata={"why": "checks", "run": 3})


def test_a_session_is_gone_on_with_by_its_id(service):
    with ServiceClient(heartbeat_interval=0.2, session_id=service.session_id) as again:
        assert again.session_id == service.session_id
        session = again.ensure_session()
        assert (session["name"], session["labels"]) == ("checks", {"suite": "nex"})
    with pytest.raises(WeaverAPIError, match="there is no session") as refused:
        ServiceClient(session_id="nobody").connect()
    assert refused.value.status_code == 404


def test_a_scheduling_policy_is_kept_and_other_clusters_are_refused():
    policy = {"mode": "prefer", "clusters": ["local"]}
    with ServiceClient(heartbeat_interval=0.2, scheduling_policy=policy) as service:
        assert service.ensure_session()["scheduling_policy"] == policy
        assert service.get_scheduling_options()["clusters"][0]["id"] == "local"
    with pytest.raises(WeaverAPIError, match="this server is one cluster"):
        ServiceClient(scheduling_policy={"mode": "fixed", "clusters": ["moon"]}).connect()


def test_there_is_one_organization_with_one_project(service):
    [organization], [project] = service.list_organizations(), service.list_projects()
    assert organization["current_user_role"] == "owner"
    assert service.resolve_scope("local", "default") == {"organization": organization, "project": project}
    with ServiceClient(heartbeat_interval=0.2, organization="local", project="default") as scoped:
        assert scoped.ensure_session()["project_id"] == project["id"]
    with pytest.raises(WeaverAPIError, match="there is no project 'other'") as refused:
        service.resolve_scope(project="other")
    assert refused.value.code == "not_found"


def test_models_are_listed_with_their_modes_and_prices(service):
    assert service.list_supported_models() == [SMOL, TINY]
    [smol, _] = service.list_supported_models(detailed=True)
    assert [mode.mode for mode in service.list_supported_model_details()[0].training_modes] == ["lora"]
    assert smol.training_mode("lora").price.unit_price_micros == 0
    config = service.get_supported_model_config(SMOL)["config"]
    assert Path(config["resource"]["tokenizer"]["path"]).is_dir()


def test_runs_and_models_are_listed_newest_first(service, model):
    model.save_state(name="listed")
    newest = service.list_training_runs(limit=1)
    assert newest["items"][0]["id"] == model.training_run_id == model.model_id
    assert newest["pagination"]["total_count"] >= 1
    assert service.list_models(limit=1, offset=0)["items"] == newest["items"]
    run = service.get_training_run(model.model_id)
    assert [one["name"] for one in run["checkpoints"]] == ["listed"]
    found = service.get_model(model.model_id)
    assert (found["training_mode"], found["lora_config"]["rank"], found["status"]) == ("lora", 32, "running")
    assert found["user_metadata"] == {"why": "checks", "run": "3"}
    with pytest.raises(WeaverAPIError, match="limit is '0'"):
        service.list_models(limit=0)


def test_a_model_is_made_as_it_is_asked_for_or_not_at_all(service):
    for wrong, sentence_of in (
        ({"training_mode": "full_ft"}, "training_mode is 'full_ft'"),
        ({"performance_tier": "flash"}, "performance_tier is 'flash'"),
        ({"lora_config": {"rank": 0}}, "lora_config.rank is 0"),
        ({"lora_config": {"rank": 8, "alpha": 3}}, "lora_config.alpha is not a field"),
        ({"base_model": "nobody/nothing"}, "is not served here"),
        ({"training_max_sequence_length": 10_000}, "training_max_sequence_length is 10000"),
        ({"base_model": f"{TINY}:100000"}, "ends in a length"),
    ):
        with pytest.raises(WeaverAPIError, match=sentence_of) as refused:
            service.create_model(**{"base_model": TINY, **wrong})
        assert refused.value.status_code == 400
    short = service.create_model(base_model=f"{TINY}:4", performance_tier="normal")
    assert short.base_model == f"{TINY}:4"
    short.forward([sentence([5, 6, 7, 8])], "cross_entropy")
    with pytest.raises(WeaverAPIError, match="created for at most 4"):
        short.forward([sentence([5, 6, 7, 8, 9, 10])], "cross_entropy")


def test_a_repeated_creation_is_one_model(service):
    first = service.create_model(base_model=TINY, model_seq_id=77, lora_config={"rank": 4})
    again = service.create_model(base_model=TINY, model_seq_id=77, lora_config={"rank": 4})
    assert again.model_id == first.model_id
    with pytest.raises(WeaverAPIError) as refused:
        service.create_model(base_model=TINY, model_seq_id=77, lora_config={"rank": 5})
    assert (refused.value.status_code, refused.value.code) == (409, "sequence_refused")


def test_repeated_operations_happen_once(service):
    """As the SDK repeats them when a connection breaks before the answer."""
    client = service.create_model(base_model=TINY, lora_config=SEEDED)
    data = [sentence([5, 6, 7]).to_payload()]
    body = {"payload": {"seq_id": 1, "forward_backward_input": {"loss_fn": "cross_entropy", "data": data}}}
    path = f"/api/v1/models/{client.model_id}/forward-backward-passes"
    first, again = service.http.post(path, json=body), service.http.post(path, json=body)
    assert again == first
    body["payload"]["forward_backward_input"]["data"] = [sentence([9, 9, 9]).to_payload()]
    with pytest.raises(WeaverAPIError, match="seq_id 1 was used by a different request"):
        service.http.post(path, json=body)
    assert service.next_operation_seq(client.model_id) == 1, "the SDK has not counted what was sent by hand"
    other = service.create_model(base_model=TINY, lora_config=SEEDED)
    other.forward_backward([sentence([5, 6, 7])], "cross_entropy")
    norms = [one.optim_step(adam(0.01))["metrics"]["grad_norm"] for one in (client, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    save = {"type": "weight", "name": "again"}
    saves = [service.http.post(f"/api/v1/models/{client.model_id}/checkpoints", json=save) for _ in range(2)]
    assert saves[0]["response"] == saves[1]["response"]


def test_metrics_are_kept(service, model):
    model.log_metrics({"reward": 1.5, "length": 3}, step=2, labels={"split": "train"})
    points = service.http.get(f"/api/v1/sessions/{service.session_id}/metrics")["items"]
    assert [(one["name"], one["value"], one["step"]) for one in points[-2:]] == [("reward", 1.5, 2), ("length", 3.0, 2)]


def test_what_is_not_offered_says_so(service, model):
    refs = [types.SampleRef(dataset="d", version="1", sample_idx=0)]
    for ask in (
        service.get_quota_balance, service.list_quota_requests, lambda: service.request_quota("1", reason="more"),
        lambda: service.datasets.list(), lambda: service.datasets.get(name="d", version="1"),
        lambda: model.resolve_sample_ref_lengths(refs),
        lambda: model.forward_backward(
            [types.Datum.from_sample_ref(dataset="d", version="1", sample_idx=0)], "cross_entropy"
        ),
    ):  # fmt: skip
        with pytest.raises(WeaverAPIError, match="this server has no") as refused:
            ask()
        assert (refused.value.status_code, refused.value.code, refused.value.retryable) == (400, "not_offered", False)
        assert refused.value.request_id


def test_every_failure_is_told_in_the_sdks_shape(service, monkeypatch):
    for ask, status, code in (
        (lambda: service.http.get("/api/v1/nothing/here"), 404, "not_found"),
        (lambda: service.http.get("/api/v1/operations/none"), 410, "gone"),
        (lambda: service.http.post("/api/v1/organizations"), 405, "method_not_allowed"),
        (lambda: service.http.post("/api/v1/sessions", json=[1]), 400, "invalid_request"),
        (lambda: service.http.post("/api/v1/sessions", json={"tags": "x"}), 400, "invalid_request"),
        (lambda: service.get_deployment("00000000-0000-4000-8000-000000000009"), 404, "not_found"),
        (lambda: service.get_model("nobody"), 404, "not_found"),
    ):
        with pytest.raises(WeaverAPIError) as refused:
            ask()
        assert (refused.value.status_code, refused.value.code) == (status, code)
        assert refused.value.message
        assert not refused.value.retryable
    monkeypatch.setenv("WEAVER_API_KEY", "tml-wrong")
    with pytest.raises(WeaverAPIError, match="holds one of this server's keys") as refused:
        ServiceClient().connect()
    assert refused.value.code == "unauthorized"


def test_an_operation_that_fails_while_it_runs_is_told_so(service):
    """A snapshot of the same name is found only when it is written, where both were asked for at once."""
    small = service.create_model(base_model=TINY, lora_config={"rank": 2})
    large = service.create_model(base_model=TINY, lora_config={"rank": 4})
    kept = small.save_state(name="small")
    with pytest.raises(WeaverOperationError) as failed:
        large.load_state(kept.path)
    assert failed.value.code == "invalid_request"
    assert failed.value.operation_id
    assert not failed.value.retryable


def test_the_async_client_has_the_same_answers(service, model):
    async def ask():
        client = AsyncServiceClient(heartbeat_interval=0.2, session_id=service.session_id)
        await client.connect()
        try:
            assert await client.list_supported_models() == [SMOL, TINY]
            assert await client.list_organizations() == service.list_organizations()
            assert await client.list_projects() == service.list_projects()
            assert await client.resolve_scope() == service.resolve_scope()
            assert (await client.get_model(model.model_id))["id"] == model.model_id
            assert (await client.get_training_run(model.model_id))["id"] == model.model_id
            assert (await client.list_models(limit=1))["items"]
            assert (await client.list_training_runs(limit=1))["items"]
            assert await client.list_deployments() == service.list_deployments()
            with pytest.raises(WeaverAPIError, match="no quotas"):
                await client.get_quota_balance()
        finally:
            await client.aclose()

    asyncio.run(ask())


def cli(*arguments):
    done = CliRunner(env={"COLUMNS": "250"}).invoke(weaver.cli.cli, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_line_works(service, model, tmp_path, monkeypatch):
    """Its clients' heartbeats made quick, for each command closes one."""
    monkeypatch.setattr("weaver.cli.ServiceClient", partial(ServiceClient, heartbeat_interval=0.2))
    kept = model.save_state(name="by-cli")
    assert SMOL in cli("list", "supported-models", "--format", "json")
    assert json.loads(cli("list", "organizations", "--format", "json"))
    assert json.loads(cli("projects", "list", "--format", "json"))
    assert "default" in cli("scope", "resolve")
    assert model.model_id in cli("list", "models", "--format", "json")
    assert model.model_id in cli("list", "training-runs", "--format", "json")
    assert model.model_id in cli("show", "model", model.model_id)
    assert "by-cli" in cli("show", "training-run", model.model_id)
    cli("checkpoint", "set-ttl", model.model_id, kept.path, "7200")
    cli("checkpoint", "export", kept.path)
    cli("checkpoint", "download", kept.path, "-o", str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").exists()
    cli("deployment", "create", kept.path, "--name", "by-cli")
    assert "by-cli" in cli("deployment", "list")
