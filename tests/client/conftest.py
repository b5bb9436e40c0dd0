"""Two ways to a service: in this process, and over HTTP to a real server. A tiny model and its tokenizer."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import uvicorn
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import weaver
from weaver.backend import ModelSource
from weaver.compat.tinker.transports.in_process import end_all
from weaver.config import Config
from weaver.server.app import create_app
from weaver.server.serve import listening_socket, url_of
from weaver.service import Service

MODEL, VOCABULARY = "tiny/llama", 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random model whose tokens are the words w0, w1, ..."""
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(made)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w1")
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="session")
def serve(folder, tmp_path_factory):
    """Starts servers in threads of this process: their URL and service."""
    stops = []

    def started(api_keys=()):
        models = (ModelSource(MODEL, str(folder), "cpu"),)
        service = Service(Config(models=models, data_dir=tmp_path_factory.mktemp("server")))
        app, bound = create_app(service, api_keys), listening_socket("127.0.0.1", 0)
        bound.listen(128)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()

        def stop():
            app.state.context.stopping.set()
            running.should_exit = True
            thread.join()
            bound.close()
            service.close()

        stops.append(stop)
        return url_of(bound), service

    yield started
    for stop in stops:
        stop()


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
