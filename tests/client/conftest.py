"""Two ways to a service: in this process, and over HTTP to a real server. A tiny model and its tokenizer."""

import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import weaver
from tests.serving import serving
from tests.tiny_models import write_llama, write_words
from weaver.backend import ModelSource
from weaver.compat.tinker.transports.in_process import end_all
from weaver.config import Config
from weaver.service import Service

MODEL = "tiny/llama"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random model whose tokens are the words w0, w1, ..."""
    return write_words(write_llama(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="session")
def serve(folder, tmp_path_factory):
    """Starts servers in threads of this process: their URL and service."""
    with ExitStack() as stack:

        def started(api_keys=()):
            models = (ModelSource(MODEL, str(folder), "cpu"),)
            service = Service(Config(models=models, data_dir=tmp_path_factory.mktemp("server")))
            stack.callback(service.close)
            return stack.enter_context(serving(service, api_keys)), service

        yield started


@pytest.fixture(scope="session")
def server(serve):
    """The URL of a server that asks for no key."""
    return serve()[0]


@pytest.fixture(scope="session")
def local(folder, tmp_path_factory):
    """What runs in this process has a data directory of its own, and the model by its name."""
    data_dir = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEAVER_DATA_DIR", str(data_dir))
        patch.setenv("WEAVER_MODEL_ALIASES", f"{MODEL}={folder}")
        patch.delenv("WEAVER_BASE_URL", raising=False)
        yield data_dir
        end_all()


@pytest.fixture(scope="session", params=["in process", "over HTTP"])
def where(request):
    """What a client is made with to get there."""
    if request.param == "in process":
        request.getfixturevalue("local")
        return {}
    return {"base_url": request.getfixturevalue("server")}


@pytest.fixture
def service(where):
    """A connected client, closed at the end."""
    with weaver.ServiceClient(**where) as client:
        yield client


@pytest.fixture
def trainer(service):
    """A new model, the same in both places."""
    return new_model(service)


def new_model(service, **more):
    lora = weaver.types.LoraConfig(rank=4, seed=3)
    return service.create_model(base_model=MODEL, lora_config=lora, **more)


def datum(tokens, **inputs):
    """A sequence with its targets, every one of which counts."""
    types = weaver.types
    given = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1), **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=given)


class Recorder(ThreadingHTTPServer):
    """A server that answers what a test wants, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, answer):
        self.asked, self.answer = [], answer
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.answer(self.command, self.path, self.headers, body)
        if answer is None:  # the connection is lost
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _handle

    def log_message(self, *args):
        pass


@pytest.fixture
def recorder():
    """Starts servers that answer with `answer(method, path, headers, body) -> (status, headers, content)`."""
    running = []

    def started(answer):
        made = Recorder(answer)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((made, thread))
        return made

    yield started
    for made, thread in running:
        made.shutdown()
        thread.join()
        made.server_close()
