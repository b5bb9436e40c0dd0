"""A real server on a free port of this machine, with the echo plugins behind it."""

import pytest

from tests.serving import serving
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.service import Service

MODEL = "some/echo"


def echo_config(data_dir, **settings):
    source = ModelSource(MODEL, "echo:vocab=100,context=512")
    return Config(models=(source,), data_dir=data_dir, backend="echo", sampler="echo", **settings)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    service = Service(echo_config(tmp_path_factory.mktemp("data")))
    try:
        with serving(service) as address:
            yield address
    finally:
        service.close()
