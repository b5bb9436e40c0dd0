"""Exports through the vendor's SDK: PEFT's files behind links that open for an hour, encrypted if asked."""

import builtins
import importlib
import json
import os
import stat
import urllib.request
from datetime import UTC, datetime
from urllib.error import HTTPError
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tinker
from safetensors.numpy import load, load_file

LLAMA = "tiny/llama"
HOUR = 3600
FILES = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def client(timed):
    with timed.client() as opened:
        yield opened


@pytest.fixture
def run(client, data):
    """A model that is not at its beginning any more."""
    made = client.create_lora_training_client(LLAMA, rank=4, seed=3).result()
    made.forward_backward(data.supervised(9), "cross_entropy")
    made.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
    return made


@pytest.fixture
def rest(timed):
    return timed.rest()


@pytest.fixture
def links(run, rest):
    path = run.save_weights_external("out").result().path
    return rest.get_external_weights_urls(path).result()


def read(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def refused(url):
    with pytest.raises(HTTPError) as error:
        read(url)
    return error.value.code, json.loads(error.value.read())["detail"]


def test_an_export_is_what_peft_reads_and_holds_the_weights_of_its_moment(timed, run, rest, tmp_path):
    path = run.save_weights_external("out", ttl_seconds=2 * HOUR).result().path
    assert path == f"tinker://{run.model_id}/external_weights/out"
    before = timed.tensors(run.save_state("same").result().path)
    run.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    found = rest.get_external_weights_urls(path).result()
    assert found.urls.keys() == FILES
    assert found.expires == datetime.fromtimestamp(int(timed.clock.now) + HOUR, UTC)
    for file, url in found.urls.items():
        assert url.startswith(timed.url)
        (tmp_path / file).write_bytes(read(url))
    exported = load_file(tmp_path / "adapter_model.safetensors")
    assert exported.keys() == before.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(exported[name], tensor)
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(str(tmp_path)).r == 4
    (listed,) = [one for one in rest.list_checkpoints(run.model_id).result().checkpoints if one.tinker_path == path]
    assert (listed.checkpoint_type, listed.checkpoint_id) == ("external", "external_weights/out")
    assert listed.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir() if file.name in FILES)
    assert listed.expires_at == datetime.fromtimestamp(timed.clock.now + 2 * HOUR, UTC)


def test_a_link_opens_for_an_hour_and_over_a_restart(timed, client, links):
    url = links.urls["adapter_config.json"]
    timed.clock.pass_by(HOUR - 2)
    expected = read(url)
    client.close("success").result()
    timed.stop()
    timed.start()
    moved = url.replace(urlsplit(url).netloc, urlsplit(timed.url).netloc)
    assert read(moved) == expected
    timed.clock.pass_by(2)
    assert refused(moved) == (403, "the link has expired; ask for a new one")


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: url.replace("expires=1", "expires=2"),
        lambda url: url.replace("adapter_config.json", "adapter_model.safetensors"),
        lambda url: url.replace("/out/", "/other/"),
        lambda url: url.replace(":train:0", ":train:1"),
        lambda url: url.replace("adapter_config.json", "..%2F..%2F..%2F..%2Fsigning.key"),
    ],
    ids=["signature", "time", "file", "name", "run", "traversal"],
)
def test_a_changed_link_is_refused(links, change):
    url = links.urls["adapter_config.json"]
    changed = change(url)
    assert changed != url
    code, sentence = refused(changed)
    assert code in (403, 404)
    assert code == 404 or "signature is wrong" in sentence


def test_the_key_that_signs_links_is_its_owners_alone(timed, links):
    assert stat.S_IMODE((timed.data_dir / "signing.key").stat().st_mode) == 0o600
    assert len((timed.data_dir / "signing.key").read_bytes()) == 32
    assert not [file for file in os.listdir(timed.data_dir) if file.startswith(".signing")]


def test_a_deleted_export_is_gone_whoever_has_a_link(run, rest, links):
    rest.delete_checkpoint(run.model_id, "external_weights/out").result()
    code, sentence = refused(links.urls["adapter_config.json"])
    assert code == 404
    assert "there is no checkpoint" in sentence


def test_a_name_is_exported_once_and_only_exports_have_links(timed, run, rest, links):
    with pytest.raises(tinker.RequestFailedError, match="exists and never changes"):
        run.save_weights_external("out").result()
    run.save_state("state").result()
    url = f"{timed.url}/api/v1/training_runs/{run.model_id}/checkpoints/external_weights/state/external_weights_urls"
    assert httpx.get(url, headers={"X-API-Key": "tml-test"}).status_code == 404


def test_an_export_is_for_the_world_outside_only(client, run, links):
    path = f"tinker://{run.model_id}/external_weights/out"
    with pytest.raises(tinker.BadRequestError, match="is an export; training starts from a path that save_state"):
        client.create_training_client_from_state(path).result()
    with pytest.raises(tinker.BadRequestError, match="is an export; sample from a path that save_weights_for_sampler"):
        client.create_sampling_client(model_path=path).result()


def test_an_encrypted_export_is_read_by_each_of_its_recipients_and_nobody_else(timed, run, rest):
    pyrage = pytest.importorskip("pyrage")
    readers = [pyrage.x25519.Identity.generate() for _ in range(2)]
    keys = [str(reader.to_public()) for reader in readers]
    path = run.save_weights_external("secret", age_encryption_recipients=keys).result().path
    plain = timed.tensors(run.save_state("same").result().path)
    urls = rest.get_external_weights_urls(path).result().urls
    assert urls.keys() == {f"{file}.age" for file in FILES}
    assert {file.name for file in timed.folder(path).iterdir()} == urls.keys()
    sealed = read(urls["adapter_model.safetensors.age"])
    for reader in readers:
        opened = load(pyrage.decrypt(sealed, [reader]))
        for name, tensor in plain.items():
            np.testing.assert_array_equal(opened[name], tensor)
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed, [pyrage.x25519.Identity.generate()])


@pytest.mark.parametrize("key", ["age1nonsense", "ssh-ed25519 nonsense"])
def test_a_recipient_that_is_no_key_is_named_and_nothing_is_written(run, rest, key):
    pytest.importorskip("pyrage")
    sentence = r"age_encryption_recipients\[0\] is no age or SSH public key"
    with pytest.raises(tinker.RequestFailedError, match=sentence) as error:
        run.save_weights_external("secret", age_encryption_recipients=[key]).result()
    assert error.value.category == "user"
    assert rest.list_checkpoints(run.model_id).result().checkpoints == []


def test_an_empty_list_of_recipients_does_not_mean_in_the_clear(run):
    with pytest.raises(tinker.BadRequestError, match="age_encryption_recipients is empty"):
        run.save_weights_external("secret", age_encryption_recipients=[]).result()


def test_without_the_package_the_error_says_how_to_install_it(run, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "pyrage":
            raise builtins.ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(tinker.RequestFailedError, match="needs pyrage: pip install 'weaver-train\\[age\\]'"):
        run.save_weights_external("secret", age_encryption_recipients=["age1x"]).result()
