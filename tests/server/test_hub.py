"""The hub's routes: a client that knows nothing of this server but HF_ENDPOINT loads a served model's tokenizer."""

import hashlib
import json
import os
import subprocess
import sys

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tests.serving import serving
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.service import Service

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
CONVERSATION = [{"role": "user", "content": "b a"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder: configuration, tokenizer, and files that nobody else may read."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    LlamaConfig(vocab_size=4, hidden_size=4, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "notes.txt").write_text("private")
    (folder.parent / "secret.json").write_text("private")
    return folder


@pytest.fixture(scope="module")
def service(folder, tmp_path_factory):
    models = (ModelSource("org/tiny", str(folder)), ModelSource("tiny", str(folder)))
    service = Service(Config(models=models, data_dir=tmp_path_factory.mktemp("data")))
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as address:
        yield address


def hub_client(code, url, home, **more):
    """What `code` prints in an interpreter of its own whose hub is the server and whose cache is empty."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | more
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


LOAD = """
import json
from transformers import AutoConfig, AutoTokenizer
tokenizer, config = AutoTokenizer.from_pretrained({name!r}), AutoConfig.from_pretrained({name!r})
chat = tokenizer.apply_chat_template({conversation!r}, return_dict=False)
print(json.dumps([tokenizer.encode("a b c"), chat, config.vocab_size]))
"""


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_a_tokenizer_and_its_template_load_by_name_into_an_empty_cache(name, url, tmp_path):
    code = LOAD.format(name=name, conversation=CONVERSATION)
    assert hub_client(code, url, tmp_path) == [[1, 2, 3], [0, 2, 1], 4]


def test_what_was_loaded_is_in_the_cache_and_needs_no_server_any_more(url, tmp_path):
    code = LOAD.format(name="org/tiny", conversation=CONVERSATION)
    first = hub_client(code, url, tmp_path)
    assert hub_client(code, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1") == first


def test_a_whole_repository_can_be_taken_without_its_weights(url, tmp_path, folder):
    code = (
        "import json, os\nfrom huggingface_hub import snapshot_download\n"
        "print(json.dumps(sorted(os.listdir(snapshot_download('org/tiny')))))"
    )
    files = hub_client(code, url, tmp_path)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert "model.safetensors" not in files
    assert "notes.txt" not in files


def test_a_file_comes_with_the_headers_by_which_clients_cache_it(url, folder):
    content = (folder / "tokenizer.json").read_bytes()
    head = httpx.head(f"{url}/org/tiny/resolve/main/tokenizer.json")
    body = httpx.get(f"{url}/org/tiny/resolve/main/tokenizer.json")
    assert (head.status_code, head.content, body.content) == (200, b"", content)
    for answer in (head, body):
        assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert answer.headers["Content-Length"] == str(len(content))
        assert len(bytes.fromhex(answer.headers["X-Repo-Commit"])) == 20
    commit = head.headers["X-Repo-Commit"]
    assert httpx.get(f"{url}/org/tiny/resolve/{commit}/tokenizer.json").content == content
    assert httpx.get(f"{url}/api/models/org/tiny/revision/{commit}").json()["sha"] == commit
    part = httpx.get(f"{url}/org/tiny/resolve/main/tokenizer.json", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, content[5:10])


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/org/tiny/resolve/main/vocab.txt", "EntryNotFound"),
        ("/org/tiny/resolve/main/model.safetensors", "EntryNotFound"),
        ("/org/tiny/resolve/main/notes.txt", "EntryNotFound"),
        ("/org/tiny/resolve/main/..%2Fsecret.json", "EntryNotFound"),
        ("/org/tiny/resolve/main/%2Fetc%2Fpasswd", "EntryNotFound"),
        ("/api/models/org/tiny/tree/main/additional_chat_templates", "EntryNotFound"),
        ("/org/tiny/resolve/v2/config.json", "RevisionNotFound"),
        ("/api/models/org/tiny/revision/v2", "RevisionNotFound"),
        ("/org/other/resolve/main/config.json", "RepoNotFound"),
        ("/other/resolve/main/config.json", "RepoNotFound"),
        ("/api/models/org/%C3%B6ther%0A", "RepoNotFound"),
    ],
)
def test_what_is_not_there_is_refused_with_the_hubs_own_code(path, code, url):
    answer = httpx.get(url + path)
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, code)
    assert "private" not in answer.text


def test_a_new_tokenizer_is_a_new_revision(url, folder):
    def commit():
        return httpx.get(f"{url}/api/models/tiny").json()["sha"]

    before = commit()
    (folder / "added_tokens.json").write_text("{}")
    try:
        assert commit() != before
    finally:
        (folder / "added_tokens.json").unlink()
    assert commit() == before


def test_a_file_that_changed_in_place_has_a_new_tag(url, folder):
    def tag():
        return httpx.head(f"{url}/tiny/resolve/main/generation_config.json").headers["ETag"]

    file = folder / "generation_config.json"
    file.write_text("[1]")
    before = tag()
    os.utime(file, ns=(1, 1))
    assert tag() == before
    file.write_text("[2]")
    assert tag() == f'"{hashlib.sha256(b"[2]").hexdigest()}"'
    file.unlink()


def test_a_server_with_keys_wants_one_as_the_hubs_token(service, tmp_path):
    code = LOAD.format(name="org/tiny", conversation=CONVERSATION)
    with serving(service, ("tml-one", "tml-two")) as address:
        refused = httpx.get(f"{address}/org/tiny/resolve/main/config.json")
        assert (refused.status_code, refused.headers["X-Error-Code"]) == (401, "RepoNotFound")
        assert "HF_TOKEN" in refused.headers["X-Error-Message"]
        assert hub_client(code, address, tmp_path, HF_TOKEN="tml-two") == [[1, 2, 3], [0, 2, 1], 4]
