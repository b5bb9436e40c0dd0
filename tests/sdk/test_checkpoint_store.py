"""Checkpoints in a store of their own: what a server's disk loses comes back from there."""

import json
import shutil
import tarfile
import urllib.request

import fsspec
import numpy as np
import pytest
import tinker

from weaver.errors import InvalidInput, MissingPackage, UnknownName
from weaver.kept import KeptFolders, open_store
from weaver.plugins.stores import FsspecStore
from weaver.registry import load_registry

GREEDY = tinker.SamplingParams(max_tokens=8, temperature=0.0, stop=[])
PROMPT = tinker.ModelInput.from_ints([5, 6, 7])


@pytest.fixture(params=["file", "memory"])
def store_url(request, tmp_path):
    yield f"file://{tmp_path}/store" if request.param == "file" else "memory://bucket/prefix"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def server(server_class, folders, tmp_path, store_url):
    running = server_class(folders, tmp_path / "data", checkpoint_store=store_url)
    yield running
    running.stop()


def names_in(url):
    files, root = fsspec.core.url_to_fs(url)
    return {one.removeprefix(root).strip("/") for one in files.find(root)}


def said(client, path):
    return client.create_sampling_client(path).sample(PROMPT, 1, GREEDY).result().sequences[0].tokens


def test_saved_states_and_snapshots_outlive_the_disk_they_were_written_on(server, trained, data, store_url):
    client = trained()
    state = client.save_state("state").result().path
    snapshot = client.save_weights_for_sampler("snapshot").result().path
    with server.client() as service:
        drawn = said(service, snapshot)
    batch = data.supervised(9, 5)
    loss = client.forward_backward(batch, "cross_entropy").result().metrics["loss:sum"]
    expected = server.tensors(state)
    server.stop()
    shutil.rmtree(server.data_dir / "checkpoints")
    server.start()
    with server.client() as service:
        assert said(service, snapshot) == drawn
        again = service.create_training_client_from_state_with_optimizer(state)
        assert again.forward_backward(batch, "cross_entropy").result().metrics["loss:sum"] == loss
        for name, tensor in server.tensors(again.save_state("again").result().path).items():
            np.testing.assert_array_equal(tensor, expected[name])
    assert len({name for name in names_in(store_url) if name.endswith("manifest.json")}) == 3


def test_copies_archives_and_exports_are_made_of_what_the_store_has(server, trained):
    client = trained()
    snapshot = client.save_weights_for_sampler("snapshot").result().path
    shutil.rmtree(server.data_dir / "checkpoints")
    run, _, name = snapshot.removeprefix("tinker://").split("/")
    asked = f"{server.url}/api/v1/training_runs/{run}/checkpoints/sampler_weights/{name}/archive"
    with urllib.request.urlopen(asked) as answer:
        link = json.load(answer)["url"]
    with urllib.request.urlopen(link) as answer, tarfile.open(fileobj=answer, mode="r|*") as tar:
        assert "adapter_model.safetensors" in {member.name.rpartition("/")[2] for member in tar}
    shutil.rmtree(server.data_dir / "checkpoints")
    copied = server.service.archive.copy(snapshot)
    shutil.rmtree(server.data_dir / "checkpoints")
    with server.client() as service:
        assert said(service, copied) == said(service, snapshot)


def test_what_is_deleted_or_replaced_leaves_the_store(server, trained, store_url):
    client = trained()
    state = client.save_state("state").result().path
    kept = names_in(store_url)
    client.save_state("state", overwrite=True).result()
    replaced = names_in(store_url)
    assert len(replaced) == len(kept)
    assert replaced != kept
    server.rest().delete_checkpoint_from_tinker_path(state).result()
    assert names_in(store_url) == set()


def test_a_state_that_is_replaced_after_the_disk_was_lost_is_there(server, trained, data):
    """The old one's folder is in the store only, and goes; the new one stays."""
    client = trained()
    path = client.save_state("state").result().path
    shutil.rmtree(server.data_dir / "checkpoints")
    client.forward_backward(data.supervised(9), "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    client.save_state("state", overwrite=True).result()
    expected = server.tensors(path)
    shutil.rmtree(server.data_dir / "checkpoints")
    with server.client() as service:
        again = service.create_training_client_from_state(path).save_state("again").result().path
    for name, tensor in server.tensors(again).items():
        np.testing.assert_array_equal(tensor, expected[name])


class Full(FsspecStore):
    def put(self, name, folder):
        raise OSError("the bucket is full")


def test_a_store_that_takes_nothing_fails_the_save_and_changes_nothing(server, trained, monkeypatch):
    client = trained()
    before = sorted((server.data_dir / "checkpoints").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(server.service._folders, "_store", Full("memory://bucket"))
        with pytest.raises(tinker.RequestFailedError, match="did not take the checkpoint: OSError: the bucket is full"):
            client.save_state("state").result()
    assert [one for one in sorted((server.data_dir / "checkpoints").rglob("*")) if one.is_file()] == [
        one for one in before if one.is_file()
    ]
    assert client.save_state("state").result().path.endswith("/weights/state")


def test_half_a_folder_in_the_store_is_no_checkpoint(tmp_path):
    store = FsspecStore("memory://half")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_text("1")
    store._files.pipe_file(f"{store._root}/a/one", b"1")
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError):
        store.get("a", tmp_path / "b")
    store.put("a", tmp_path / "a")
    store._files.pipe_file(f"{store._root}/a/one", b"")
    with pytest.raises(OSError, match="has 0 bytes; 1 were put there"):
        store.get("a", tmp_path / "b")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("bucket/prefix", InvalidInput, "must be a URL like s3://bucket/prefix"),
        ("file://relative", InvalidInput, "must name an absolute path"),
        ("ftp://host", UnknownName, "there is no checkpoint store 'ftp'; there are: file, gs, memory, s3"),
        ("gs://bucket", MissingPackage, r"pip install 'weaver-train\[gs\]'"),
    ],
)
def test_a_store_that_cannot_be_opened_is_refused_when_the_server_starts(url, error, message):
    with pytest.raises(error, match=message):
        open_store(load_registry(), url)


def test_without_a_store_a_folder_is_where_it_was_written(tmp_path):
    folders = KeptFolders(tmp_path)
    (tmp_path / "a").mkdir()
    folders.keep(tmp_path / "a")
    assert folders.local(tmp_path / "a") == tmp_path / "a"
