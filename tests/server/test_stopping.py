"""How a server stops, and what clients that are gone, or silent, leave behind. No test looks at a clock."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from starlette.requests import Request

from tests.server.conftest import echo_config
from tests.serving import serving
from weaver.compat.tinker.routes import bodies
from weaver.server.serve import listening_socket
from weaver.service import Service

MODEL, KEY = "some/echo", "tml-any"
PROGRAM = """
import atexit, gc
atexit.register(lambda: print("left alone", gc.get_freeze_count(), flush=True))
from weaver.server.cli import main
main()
"""


def begin(url, path, sent, length):
    """A connection on which so much of a body has been sent, and no more is. The server is waiting for the rest."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port), timeout=60)
    head = [f"POST {path} HTTP/1.1", "Host: x", f"X-API-Key: {KEY}", "Content-Type: application/json"]
    head += ["Expect: 100-continue", f"Content-Length: {length}"]
    connection.sendall("\r\n".join([*head, "", ""]).encode())
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert connection.recv(len(go_on), socket.MSG_WAITALL) == go_on
    connection.sendall(sent)
    return connection


def answer(connection):
    """The status and the sentence."""
    received = b""
    while b"}" not in received and (part := connection.recv(65536)):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@contextmanager
def started(data_dir):
    """`weaver serve` with the echo plugins; yields the process and its URL."""
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--data-dir", str(data_dir)]
    command += ["--backend", "echo", "--sampler", "echo", "--model", f"{MODEL}=echo:vocab=100,context=512"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stdout if " ready: " in line)
        yield server, line.split(" ready: ")[1].split()[0]
    finally:
        server.kill()
        server.communicate()


def never(client, url):
    """The id of a request that waits for a number that does not come."""

    def post(path, **body):
        answered = client.post(f"{url}/api/v1/{path}", json=body, headers={"X-API-Key": KEY})
        assert answered.status_code == 200, answered.text
        return answered.json()

    session_id = post("create_session", tags=[], sdk_version="0.38.0")["session_id"]
    made = {"session_id": session_id, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 2}}
    model_id = f"{session_id}:train:0"
    assert post("create_model", **made)["request_id"]
    return post("optim_step", model_id=model_id, seq_id=5, adam_params={"learning_rate": 0.1})["request_id"]


PATHS = ("/api/v1/create_session", "/api/v1/sessions/s/models", "/v1/chat/completions")


def test_a_server_that_stops_waits_for_nobody(tmp_path):
    """Not for half a body, the poll of what never comes, or connections that are kept open or silent; and then the
    interpreter goes without looking through all that is left."""
    with started(tmp_path) as (server, url), httpx.Client() as kept:
        assert kept.get(f"{url}/api/v1/healthz").json() == {"status": "ok"}
        asked = json.dumps({"request_id": never(kept, url)}).encode()
        waiting = [begin(url, path, b'{"a', 1000) for path in PATHS]
        waiting.append(begin(url, "/api/v1/retrieve_future", asked, len(asked)))
        silent = socket.create_connection(waiting[0].getpeername())
        server.send_signal(signal.SIGTERM)
        answers = [answer(connection) for connection in waiting]
        assert [status for status, _ in answers] == [503] * 4
        assert all("the server is shutting down" in json.dumps(body) for _, body in answers)
        said = server.communicate(timeout=60)[0]
        assert server.returncode == 0
        assert int(said.rpartition("left alone ")[2]) > 10_000
        for connection in (*waiting, silent):
            connection.close()


@pytest.mark.parametrize("sent", [b"", b'{"ab'])
def test_a_body_that_stops_coming_is_given_up(tmp_path, monkeypatch, sent):
    monkeypatch.setattr(bodies, "SILENT_SECONDS", 0.01)
    service = Service(echo_config(tmp_path))
    try:
        with serving(service) as url, begin(url, PATHS[0], sent, 1000) as connection:
            status, body = answer(connection)
            assert status == 400
            assert "for 0.01 s; send it again" in json.dumps(body)
            assert service.sessions.page(10, 0).total == 0
    finally:
        service.close()


def test_a_body_may_come_slowly():
    """Each part begins the wait again. The clock is the test's: a part takes nine tenths of the wait."""

    async def read():
        loop, parts, now = asyncio.get_running_loop(), [b"a", b"b", b"c", b"d"], [0.0]
        loop.time = lambda: now[0]

        async def receive():
            now[0] += 0.9 * bodies.SILENT_SECONDS
            await asyncio.to_thread(int)  # the loop looks at its clock
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        return await bodies._received(Request({"type": "http"}, receive), bodies.BODY_LIMIT)

    assert asyncio.run(read()) == b"abcd"


def test_connections_notice_that_the_other_end_is_gone():
    with listening_socket("127.0.0.1", 0) as bound:
        bound.listen()
        with socket.create_connection(bound.getsockname()):
            accepted, _ = bound.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                if hasattr(socket, "TCP_KEEPIDLE"):
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
