"""What there is and what is done with it: the same answers whichever way."""

import urllib.request
import warnings
from datetime import UTC, datetime, timedelta

import pytest

MODEL = "tiny/llama"


def test_runs_and_checkpoints(way, client, trainer):
    saved = trainer.save_state("a", user_metadata={"step": "1"}).result().path
    sampled = trainer.save_weights_for_sampler("b", ttl_seconds=3600).result().path
    rest = way.rest()
    run = rest.get_training_run(trainer.model_id).result()
    assert (run.base_model, run.lora_rank, run.is_lora) == (MODEL, 4, True)
    assert (run.last_checkpoint.tinker_path, run.last_sampler_checkpoint.tinker_path) == (saved, sampled)
    assert rest.get_training_run_by_tinker_path(saved).result() == run
    assert trainer.model_id in [one.training_run_id for one in rest.list_training_runs(limit=50).result().training_runs]
    listed = {one.tinker_path: one for one in rest.list_checkpoints(trainer.model_id).result().checkpoints}
    assert listed.keys() == {saved, sampled}
    assert (listed[saved].checkpoint_type, listed[saved].checkpoint_id) == ("training", "weights/a")
    assert listed[saved].user_metadata == {"step": "1"}
    assert listed[sampled].expires_at is not None
    assert {saved, sampled} <= {one.tinker_path for one in rest.list_user_checkpoints().result().checkpoints}
    weights = rest.get_weights_info_by_tinker_path(saved).result()
    assert (weights.base_model, weights.lora_rank, weights.train_mlp) == (MODEL, 4, True)
    rest.set_checkpoint_ttl_from_tinker_path(sampled, None).result()
    rest.publish_checkpoint_from_tinker_path(saved).result()
    listed = {one.tinker_path: one for one in rest.list_checkpoints(trainer.model_id).result().checkpoints}
    assert (listed[sampled].expires_at, listed[saved].public) == (None, True)
    rest.unpublish_checkpoint_from_tinker_path(saved).result()
    copied = rest.copy_weights(saved, "elsewhere", ttl_seconds=7200).result()
    assert copied != saved
    assert copied.endswith("/weights/a")
    rest.delete_checkpoint(trainer.model_id, "weights/a").result()
    rest.delete_checkpoint_from_tinker_path(sampled).result()
    assert rest.list_checkpoints(trainer.model_id).result().checkpoints == []
    assert way.client().create_training_client_from_state(copied).result().get_info().lora_rank == 4


def test_a_sampler_of_a_path(way, client, trainer):
    path = trainer.save_weights_for_sampler("kept").result().path
    for sampler in (trainer.create_sampling_client(path).result(), client.create_sampling_client(path).result()):
        assert sampler.get_base_model() == MODEL
        assert len(sampler.compute_logprobs(way.prompt(2, 3, 4), prompt_logprobs_last_n=1).result()) == 3
    info = way.rest().get_sampler(sampler._sampling_session_id).result()
    assert (info.base_model, info.model_path) == (MODEL, path)


def test_exports_have_links_that_can_be_opened(way, trainer):
    path = trainer.save_weights_external("out").result().path
    links = way.rest().get_external_weights_urls(path).result()
    assert links.expires > datetime.now(UTC)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(links.urls)
    with urllib.request.urlopen(links.urls["adapter_config.json"]) as opened:
        assert b"lora_alpha" in opened.read()


def test_sessions(way, trainer):
    session_id = trainer.model_id.partition(":")[0]
    rest, types = way.rest(), way.tinker.types
    assert rest.get_session(session_id).result().training_run_ids == [trainer.model_id]
    assert session_id in rest.list_sessions(limit=100).result().sessions
    rest.assign_session_project(session_id, "project").result()
    with pytest.warns(way.tinker.ExperimentalWarning):
        found = rest.search_sessions(
            types.SessionSearchRequest(project_ids=["project"], session_id=session_id)
        ).result()
    assert [one.session_id for one in found.sessions] == [session_id]
    with urllib.request.urlopen(rest.export_session_trace(session_id).result()) as opened:
        assert b"traceEvents" in opened.read()
    with pytest.raises(RuntimeError):
        rest.whoami().result()


def test_capabilities(way):
    models = way.rest().get_server_capabilities().result().supported_models
    assert (MODEL, 256) in [(one.model_name, one.max_context_length) for one in models]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        client = way.client()
        assert client.get_server_capabilities().supported_models == models
        assert client.create_rest_client().get_server_capabilities().result().supported_models == models


def test_usage(way, trainer):
    trainer.forward([way.datum(9)], "cross_entropy").result()
    way.service.meter.flush()
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    usage = way.admin().get_billing_usage(start, start + timedelta(hours=1)).result()
    assert trainer.model_id.partition(":")[0] in {event.session_id for event in usage.data}
    with pytest.raises(way.tinker.BadRequestError, match="full hour"):
        way.admin().get_billing_usage(start + timedelta(minutes=1), start + timedelta(hours=1)).result()
    assert way.admin().get_audit_log("checkpoints").result().entries is not None
    assert way.admin().get_current_checkpoint_storage_usage().result().data is not None


def test_lists_have_their_bounds(way):
    with pytest.raises(way.tinker.BadRequestError, match="limit"):
        way.rest().list_training_runs(limit=0).result()
    with pytest.raises(way.tinker.BadRequestError, match="access_scope"):
        way.rest().list_sessions(access_scope="all").result()
