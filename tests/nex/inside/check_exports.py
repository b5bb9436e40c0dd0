"""Weights for others: export, manifest, download and resume; deployments."""

import hashlib
import os
from pathlib import Path

import httpx
import pytest
from support import TINY, adam, sentence

from weaver import WeaverAPIError, types

PROMPT = [5, 6, 7, 8, 9, 10]
OUT = Path(os.environ["NEX_OUT"])


@pytest.fixture(scope="module")
def client(service):
    client = service.create_model(base_model=TINY, lora_config=types.LoraConfig(rank=8, seed=2))
    for _ in range(2):
        client.forward_backward([sentence(PROMPT)], "cross_entropy")
        client.optim_step(adam(0.05))
    return client


@pytest.fixture(scope="module")
def kept(client):
    return client.save_state(name="to-export", checkpoint_type="weight_and_optimizer")


def files_of(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_both_kinds_are_exported_and_downloaded(client, service, kept, numbers):
    """Outside, transformers and peft load them and must find these logprobs."""
    sampler = client.save_weights_and_get_sampling_client()
    numbers["exported"] = {
        "tokens": PROMPT,
        "logprobs": sampler.compute_logprobs(prompt=types.ModelInput.from_ints(PROMPT)),
    }
    for merged, kind in ((False, "hf_adapter"), (True, "hf_model")):
        artifact = client.export_weights(checkpoint=kept, merge_adapter=merged)
        assert (artifact.kind, artifact.status, artifact.checkpoint_id) == (kind, "completed", kept.id)
        assert artifact.uri == f"{kept.path}/artifacts/{kind}"
        assert artifact.ttl_seconds == 604_800
        folder = service.download_weights(artifact, OUT / kind)
        manifest = {file["name"]: file["sha256"] for file in artifact.manifest["files"]}
        assert files_of(folder) == manifest
        assert artifact.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
        assert files_of(service.download_weights(artifact.uri, OUT / f"{kind}-by-uri")) == manifest
    with pytest.raises(ValueError, match="disambiguate"):
        service.download_weights(kept.path, OUT / "neither")
    assert files_of(service.download_weights(kept.path, OUT / "chosen", kind="hf_adapter")).keys() == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_an_export_is_made_once_unless_it_is_forced(client, kept):
    first = client.export_weights(checkpoint=kept)
    again = client.export_weights(checkpoint=kept.path, wait=False)
    assert again == first
    forced = client.export_weights(checkpoint=kept.id, force=True)
    assert forced.id != first.id
    with pytest.raises(WeaverAPIError, match="there is no artifact") as refused:
        client._service.http.get(f"/api/v1/artifacts/{first.id}/download")
    assert refused.value.status_code == 404


def test_the_present_weights_are_exported_in_one_call(client, service):
    artifact = client.export_weights(ttl_seconds=7200)
    assert (artifact.kind, artifact.ttl_seconds) == ("hf_adapter", 7200)
    assert files_of(service.download_weights(artifact.id, OUT / "one-call")).keys() == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_a_download_goes_on_where_it_stopped(client, service, kept):
    artifact = client.export_weights(checkpoint=kept)
    whole = service.download_weights(artifact, OUT / "whole") / "adapter_model.safetensors"
    folder = OUT / "resumed"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors.part").write_bytes(whole.read_bytes()[:1000])
    assert files_of(service.download_weights(artifact, folder)) == files_of(whole.parent)
    [entry] = [
        file
        for file in service.http.get(f"/api/v1/artifacts/{artifact.id}/download")["files"]
        if file["name"] == whole.name
    ]
    resumed = httpx.get(entry["url"], headers={"Range": "bytes=1000-"})
    assert (resumed.status_code, resumed.content) == (206, whole.read_bytes()[1000:])
    assert httpx.get(entry["url"], headers={"Range": f"bytes={entry['size']}-"}).status_code == 416
    assert httpx.get(entry["url"][:-1] + ("0" if entry["url"][-1] != "0" else "1")).status_code == 403
    assert httpx.get(entry["url"].replace("adapter_model", "adapter_module")).status_code == 403


def test_a_deployment_is_a_name_at_the_openai_endpoint(client, service, kept):
    made = client.deploy_checkpoint(kept, name="exported-model")
    assert (made.status, made.name, made.checkpoint_id, made.replicas) == ("running", "exported-model", kept.id, 1)
    assert service.get_deployment(made.id) == made
    assert made in service.list_deployments()
    asked = {"model": made.name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    key = {"Authorization": f"Bearer {os.environ['WEAVER_API_KEY']}"}
    for model in (made.name, made.northgate_model_id):
        answer = httpx.post(f"{made.endpoint}/completions", json=asked | {"model": model}, headers=key, timeout=60)
        assert answer.status_code == 200, answer.text
    with pytest.raises(WeaverAPIError, match="there is a deployment") as taken:
        client.deploy_checkpoint(kept, name="exported-model")
    assert (taken.value.status_code, taken.value.code) == (409, "name_taken")
    with pytest.raises(WeaverAPIError, match="replicas is 2"):
        client.deploy_checkpoint(kept, name="two", replicas=2)
    newer = client.deploy_checkpoint(kept, name="exported-model", overwrite=True)
    assert service.delete_deployment(newer.id).status == "stopped"
    assert httpx.post(f"{made.endpoint}/completions", json=asked, headers=key).status_code == 404
    with pytest.raises(WeaverAPIError, match="is stopped already"):
        service.delete_deployment(newer.id)
    assert [found.name for found in client.list_checkpoints() if found.name.startswith("deployed")] == []
