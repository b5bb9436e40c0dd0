"""The requests that a client sends, as a file that can be sent again: `python recording.py TARGET_URL FILE` passes
every request on to TARGET_URL and writes FILE when it is interrupted.

Bodies keep their shape, not their content: tokens become their number, numbers that repeat become runs, ids become the
name of what they are of. Polls are left out: whether and how often there are any is the server's choice.
"""

import json
import re
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

POLL = re.compile(r"/operations/[^/]+$")
UNTOLD = {"sdk_version", "occurred_at"}
KINDS = ("sessions", "models", "sampling-sessions")
"""What is created by such a path is named after it, and how many of them there are."""


def reduced(value: Any, key: str = "") -> Any:
    """A body without its content."""
    match value:
        case dict():
            return {name: reduced(item, name) for name, item in value.items() if name not in UNTOLD}
        case list() if key == "tokens" or (key == "data" and value and all(type(one) is int for one in value)):
            return {"$tokens": len(value)}
        case list() if key == "data" and all(type(one) in (int, float) for one in value):
            return {
                "$runs": [[number, len(list(run))] for number, run in groupby(round(one, 0) + 0.0 for one in value)]
            }
        case list():
            return [reduced(item) for item in value]
    return value


def restored(value: Any, vocabulary: int) -> Any:
    """A body like the one that was reduced, with tokens below `vocabulary`."""
    match value:
        case {"$tokens": count}:
            return [3 + index % (vocabulary - 3) for index in range(count)]
        case {"$runs": runs}:
            return [number for number, count in runs for _ in range(count)]
        case dict():
            return {name: restored(item, vocabulary) for name, item in value.items()}
        case list():
            return [restored(item, vocabulary) for item in value]
    return value


@dataclass
class Recording:
    """Requests in the order in which they came."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, method: str, path: str, body: bytes) -> None:
        if method == "GET" and POLL.search(path):
            return
        with self.lock:
            said = {"body": reduced(json.loads(body))} if body else {}
            self.requests.append(json.loads(self._named(json.dumps({"method": method, "path": path} | said))))

    def answered(self, method: str, path: str, body: bytes) -> None:
        kind = path.rsplit("/", 1)[-1]
        if method == "POST" and kind in KINDS:
            with self.lock:
                number = sum(name.startswith(f"{{{kind}-") for name in self.names.values()) + 1
                self.names.setdefault(json.loads(body)["id"], f"{{{kind}-{number}}}")

    def _named(self, text: str) -> str:
        for found in sorted(self.names, key=len, reverse=True):  # one id may begin like another
            text = text.replace(found, self.names[found])
        return text


def proxy(target: str, recording: Recording) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recording.asked(self.command, self.path, body)
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            headers["Accept-Encoding"] = "identity"
            request = urllib.request.Request(target + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=600) as answer:
                    status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
            except HTTPError as error:
                status, kind, content = error.code, error.headers["Content-Type"], error.read()
            if status < 300:
                recording.answered(self.command, self.path, content)
            self.send_response(status)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _pass_on

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


def main(target: str, file: Path) -> None:
    recording = Recording()
    server = proxy(target, recording)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        lines = ",\n".join(json.dumps(one) for one in recording.requests)
        file.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
