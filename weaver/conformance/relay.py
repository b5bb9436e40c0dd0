"""A relay between the SDK and the server: it keeps every exchange, and can lose an answer as a bad network would.

So retries are the SDK's own, the requests that are sent twice are the bytes it sent, and nothing of its inside is used.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

_NOT_PASSED_ON = {"host", "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding"}
_TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and what the server answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int
    answer: bytes
    content_type: str

    @property
    def operation(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(slots=True)
class Relay:
    """Passes requests on. The first answer to each operation in `losing` reaches the server and never comes back."""

    target: str
    client_config: Mapping[str, Any] = field(default_factory=dict)
    losing: set[str] = field(default_factory=set)
    exchanges: list[Exchange] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    http: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=_TIMEOUT_SECONDS, limits=httpx.Limits(max_connections=None))
    )

    def of(self, operation: str) -> list[Exchange]:
        """The exchanges of one operation so far, in order."""
        with self.lock:
            return [one for one in self.exchanges if one.operation == operation]

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Ask the server, and keep what was said."""
        kept = {name: value for name, value in headers.items() if name.lower() not in _NOT_PASSED_ON}
        answer = self.http.request(method, self.target + path, headers=kept, content=body)
        content_type = answer.headers.get("content-type", "application/json")
        exchange = Exchange(method, path, kept, body, answer.status_code, answer.content, content_type)
        with self.lock:
            self.exchanges.append(exchange)
        return exchange

    def again(self, exchange: Exchange) -> Exchange:
        """The same bytes once more, as after an answer that was lost."""
        return self.send(exchange.method, exchange.path, exchange.headers, exchange.body)

    def loses(self, operation: str) -> bool:
        """Whether this answer is to be lost; the next one of the operation is not."""
        with self.lock:
            lost = operation in self.losing
            self.losing.discard(operation)
        return lost

    def answer(self, exchange: Exchange) -> tuple[int, bytes]:
        """What the SDK is told."""
        if self.loses(exchange.operation):
            return 503, b'{"detail": "the relay lost the answer"}'
        if exchange.path.endswith("/client/config") and exchange.status == 200:
            return 200, json.dumps(json.loads(exchange.answer) | dict(self.client_config)).encode()
        return exchange.status, exchange.answer


@contextmanager
def relaying(target: str, **client_config: Any) -> Iterator[Relay]:
    """A relay on a free port of this machine; `client_config` overrides what the server tells the SDK to do."""
    relay = Relay(target, client_config)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(relay))
    server.daemon_threads = True
    relay.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, name="conformance-relay", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        relay.http.close()


def _handler(relay: Relay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            self._pass_on()

        def do_GET(self) -> None:
            self._pass_on()

        def do_PUT(self) -> None:
            self._pass_on()

        def do_DELETE(self) -> None:
            self._pass_on()

        def log_message(self, format: str, *args: object) -> None:
            """A check's result says what matters."""

        def _pass_on(self) -> None:
            exchange = relay.send(self.command, self.path, dict(self.headers.items()), self._body())
            status, answer = relay.answer(exchange)
            self.send_response(status)
            self.send_header("Content-Type", exchange.content_type)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

    return Handler
