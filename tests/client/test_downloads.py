"""Exported weights on this machine: whole and checked, resumed where they stopped, never outside of their folder."""

import json
from hashlib import sha256
from urllib.parse import urlsplit

import pytest
from safetensors.numpy import load_file

import weaver
from weaver.client import downloads

from .conftest import datum, new_model

types = weaver.types
ARTIFACT = "33333333-3333-4333-8333-333333333333"
CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Repeats come soon."""
    monkeypatch.setattr(downloads, "_FIRST_DELAY", 0.001)


class Files:
    """A server of files by signed links, which may cut the first answer short, or refuse old links."""

    def __init__(self, names=("model.safetensors",), cut=None, refusals=0, ranges=True, **about):
        self.names, self.cut, self.refusals, self.ranges, self.about = names, cut, refusals, ranges, about
        self.url, self.descriptors, self.begins, self.keys = "", 0, [], []

    def __call__(self, method, path, headers, body):
        if urlsplit(path).path.startswith("/blob/"):
            return self._blob(path, headers)
        if path.endswith("/download"):
            self.descriptors += 1
            about = {"size": len(CONTENT), "sha256": sha256(CONTENT).hexdigest(), **self.about}
            files = [{"name": name, "url": f"{self.url}/blob/{self.descriptors}", **about} for name in self.names]
            return 200, {}, json.dumps({"files": files}).encode()
        return 200, {}, json.dumps({"id": "s"}).encode()

    def _blob(self, path, headers):
        self.keys.append(headers.get("X-WEAVER-API-KEY"))
        if self.refusals >= int(path.rpartition("/")[2]):
            return 403, {}, b"old"
        begin = int(headers.get("Range", "bytes=0-")[6:-1])
        self.begins.append(begin)
        if begin >= len(CONTENT):
            return 416, {}, b""
        begin = begin if self.ranges else 0
        return (206 if begin else 200), {}, CONTENT[begin:]


@pytest.fixture
def fetch(recorder, tmp_path):
    def fetched(files, **more):
        server = recorder(files)
        files.url = server.url
        with weaver.ServiceClient(base_url=server.url, api_key="sk-secret") as client:
            return client.download_weights(ARTIFACT, tmp_path / "to", **more)

    return fetched


def test_an_adapter_arrives_as_it_was_exported(service, trainer, tmp_path):
    trainer.forward_backward([datum([5, 9, 3])], "cross_entropy")
    trainer.optim_step(types.AdamParams(learning_rate=1e-2))
    saved = trainer.save_state(name="a")
    artifact = trainer.export_weights(checkpoint=saved)
    assert (artifact.kind, artifact.status, artifact.checkpoint_id) == ("hf_adapter", "completed", saved.id)
    folder = service.download_weights(artifact, tmp_path / "adapter")
    listed = {one["name"]: one for one in artifact.manifest["files"]}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= listed.keys()
    for name, one in listed.items():
        content = (folder / name).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (one["size"], one["sha256"])
    assert not list(folder.glob("*.part"))
    weights = load_file(folder / "adapter_model.safetensors")
    assert any(value.any() for value in weights.values())
    for target in (artifact.uri, artifact.id, saved.path):
        again = service.download_weights(target, tmp_path / f"again{len(target)}")
        assert (again / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()
    same = trainer.export_weights(checkpoint=saved.path, wait=False)
    assert same.id == artifact.id, "it is there already"
    other = trainer.export_weights(checkpoint=saved, merge_adapter=True)
    assert other.kind == "hf_model"
    with pytest.raises(ValueError, match="Multiple completed artifacts"):
        service.download_weights(saved.path, tmp_path / "which")
    whole = service.download_weights(saved.path, tmp_path / "whole", kind="hf_model")
    assert (whole / "config.json").is_file()


def test_what_is_not_exported_is_not_downloaded(service, trainer, tmp_path):
    saved = trainer.save_state(name="a")
    with pytest.raises(RuntimeError, match=r"No completed HF weights artifact exists for .*export_weights"):
        service.download_weights(saved.path, tmp_path)
    with pytest.raises(ValueError, match="No checkpoint with path"):
        service.download_weights(f"weaver://{trainer.model_id}/checkpoints/b", tmp_path)
    with pytest.raises(ValueError, match="belongs to model"):
        new_model(service).export_weights(checkpoint=saved.path)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("", "must not be empty"),
        ("abc", "artifact id must be a UUID, got 'abc'"),
        ("33333333333343338333333333333333", "canonical hyphenated UUID"),
        ("weaver://a/b", "Unrecognized weaver URI"),
        ("weaver://../checkpoints/a", "Unrecognized weaver URI"),
        ("weaver://a/checkpoints/b/artifacts/gguf", "Unknown artifact kind 'gguf'"),
    ],
)
def test_a_target_that_names_nothing_is_refused_before_anything_is_asked(service, tmp_path, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        service.download_weights(target, tmp_path)


def test_a_download_goes_on_where_it_stopped(fetch, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to/model.safetensors.part").write_bytes(CONTENT[:1000])
    files = Files()
    folder = fetch(files)
    assert files.begins == [1000]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert fetch(files) == folder
    assert files.begins == [1000], "what is there is not fetched again"
    assert set(files.keys) == {None}, "a link needs no key, and must not get it"


def test_a_server_that_knows_no_ranges_sends_all_of_it_anew(fetch, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to/model.safetensors.part").write_bytes(b"?" * 1000)
    assert (fetch(Files(ranges=False)) / "model.safetensors").read_bytes() == CONTENT


def test_all_but_the_renaming_was_done(fetch, tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "to/model.safetensors.part").write_bytes(CONTENT)
    files = Files()
    assert (fetch(files) / "model.safetensors").read_bytes() == CONTENT
    assert files.begins == [len(CONTENT)]


def test_links_that_have_expired_are_asked_for_again(fetch):
    files = Files(refusals=2)
    assert (fetch(files) / "model.safetensors").read_bytes() == CONTENT
    assert files.descriptors == 3
    with pytest.raises(RuntimeError, match="refused again and again"):
        fetch(Files(names=("other",), refusals=9))


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"sha256": "0" * 64}, "sha256 mismatch for 'model.safetensors': expected 0000"),
        ({"size": 10_239}, "Downloaded size mismatch for 'model.safetensors': expected 10239 bytes, got 10240"),
    ],
)
def test_what_arrives_as_another_file_is_thrown_away(fetch, tmp_path, about, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        fetch(Files(**about))
    assert list((tmp_path / "to").iterdir()) == []


def test_digests_are_not_compared_where_nobody_wants_it(fetch):
    assert (fetch(Files(sha256="0" * 64), verify=False) / "model.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "name", ["../a", "/a", "a/../../b", "a//b", "./a", "a\\b", "C:a", "nul", "a.", "a/", ".", "con/a"]
)
def test_a_name_that_may_lead_elsewhere_is_refused(fetch, tmp_path, name):
    with pytest.raises(ValueError, match="unsafe file name in download descriptor"):
        fetch(Files(names=(name,)))
    assert list((tmp_path / "to").iterdir()) == []


def test_a_name_that_comes_twice_is_refused(fetch):
    with pytest.raises(ValueError, match="duplicate file name"):
        fetch(Files(names=("a", "a")))
    with pytest.raises(ValueError, match="contains no files"):
        fetch(Files(names=()))


def test_a_link_out_of_the_folder_is_not_followed(fetch, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to/sub").symlink_to(outside)
    with pytest.raises(ValueError, match="lies outside of"):
        fetch(Files(names=("sub/model.safetensors",)))
    (tmp_path / "to/model.safetensors.part").symlink_to(outside / "stolen")
    fetch(Files())
    assert list(outside.iterdir()) == []
    assert (tmp_path / "to/model.safetensors").read_bytes() == CONTENT


def test_a_deployment_is_a_name_at_the_openai_endpoint(service, trainer):
    saved = trainer.save_state(name="served", checkpoint_type="sampling")
    for name, sentence in {"": "must not be empty", "a b": "invalid deployment name", "a" * 64: "at most 63"}.items():
        with pytest.raises(ValueError, match=sentence):
            trainer.deploy_checkpoint(saved, name=name)
    with pytest.raises(ValueError, match="replicas must be between 1 and 8, got 9"):
        trainer.deploy_checkpoint(saved, name="a", replicas=9)
    made = trainer.deploy_checkpoint(saved, name=f"mine-{trainer.model_id[:8]}")
    assert isinstance(made, types.Deployment)
    assert made.status == "running"
    base_url = service._settings.base_url
    assert made.endpoint is None if base_url is None else made.endpoint.startswith(base_url), "none in process"
    assert made.id in {one.id for one in service.list_deployments()}
    assert service.get_deployment(made.id).name == made.name
    with pytest.raises(weaver.WeaverAPIError, match=r"name_taken.*choose another name"):
        trainer.deploy_checkpoint(saved, name=made.name)
    assert service.delete_deployment(made.id).status == "stopped"
    with pytest.raises(ValueError, match="deployment id must be a UUID"):
        service.get_deployment("../models")
