"""A real server of a tiny model that speaks bytes, with the chat template of weaver_nexau."""

import pytest
from transformers import PreTrainedTokenizerFast
from weaver_nexau.model import TEMPLATE

import weaver
from tests.openai.conftest import write_model
from tests.serving import serving
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.service import Service

MODEL = "tiny/agent"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "agent", TEMPLATE.read_text())


@pytest.fixture(scope="session")
def tokenizer(folder):
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def url(folder, tmp_path_factory):
    source = ModelSource(MODEL, str(folder), "cpu")
    service = Service(Config(models=(source,), data_dir=tmp_path_factory.mktemp("data")))
    try:
        with serving(service) as address:
            yield address
    finally:
        service.close()


@pytest.fixture(scope="module")
def client(url):
    with weaver.ServiceClient(base_url=url, api_key="local") as connected:
        yield connected
