"""Credentials are looked for where the SDK looks, and the same ones are found or refused."""

import asyncio
import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tinker as theirs
from tinker.lib._auth_token_provider import resolve_auth_provider

import weaver.compat.tinker as ours
from weaver.compat.tinker import credentials


def jwt(seconds, **claims):
    """A token that expires so many seconds from now."""
    parts = [{"alg": "none"}, {"exp": time.time() + seconds, **claims}, {}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


FRESH, EXPIRED = jwt(1000), jwt(-1000)
STORED = {"version": 1, "default": "1", "keys": {"1": {"type": "manual", "key": "tml-stored", "name": "mine"}}}
CASES = {
    "nothing": {},
    "a key": {"TINKER_API_KEY": "tml-a"},
    "a key of only a prefix": {"TINKER_API_KEY": "tml-"},
    "a key without a prefix": {"TINKER_API_KEY": "sk-a"},
    "an empty key": {"TINKER_API_KEY": ""},
    "a token": {"TINKER_API_KEY": FRESH},
    "an expired token": {"TINKER_API_KEY": EXPIRED},
    "a broken token": {"TINKER_API_KEY": "eyJ.a"},
    "a token without an end": {"TINKER_API_KEY": FRESH.split(".")[0] + ".e30."},
    "a command": {"TINKER_CREDENTIAL_CMD": "echo tml-printed"},
    "a command and a key": {"TINKER_CREDENTIAL_CMD": "echo tml-printed", "TINKER_API_KEY": "tml-a"},
    "a command and a bad key": {"TINKER_CREDENTIAL_CMD": "echo tml-printed", "TINKER_API_KEY": "sk-a"},
    "a command that prints a token": {"TINKER_CREDENTIAL_CMD": f"echo {FRESH}"},
    "a command that prints an expired token": {"TINKER_CREDENTIAL_CMD": f"echo {EXPIRED}"},
    "a command that prints nothing": {"TINKER_CREDENTIAL_CMD": "true"},
}
FILES = {
    "no file": None,
    "a stored key": json.dumps(STORED),
    "no default": json.dumps({**STORED, "default": None}),
    "a default that is gone": json.dumps({**STORED, "default": "2"}),
    "no json": "{",
    "another version": json.dumps({**STORED, "version": 2}),
    "a bad key": json.dumps(STORED).replace("tml-", "sk-"),
}


@pytest.fixture(params=FILES)
def home(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:1")
    if FILES[request.param] is not None:
        (tmp_path / ".tinker").mkdir()
        (tmp_path / ".tinker" / "credentials.json").write_text(FILES[request.param])
    return tmp_path


@pytest.fixture(params=CASES)
def environment(request, monkeypatch):
    for name in ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in CASES[request.param].items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("home", "environment")
def test_the_same_token_is_found_without_a_command(outcome_of):
    assert outcome_of(lambda t: t.auth.get_tinker_token(), ours) == outcome_of(
        lambda t: t.auth.get_tinker_token(), theirs
    )


@pytest.mark.usefixtures("home", "environment")
def test_both_agree_whether_there_are_credentials():
    assert ours.auth.tinker_has_credentials() == theirs.auth.tinker_has_credentials()


async def async_token(given, enforce):
    """What the SDK sends."""
    return await resolve_auth_provider(given, enforce_cmd=enforce).get_token()


@pytest.mark.usefixtures("home", "environment")
@pytest.mark.parametrize("enforce", [False, True])
def test_the_same_token_is_sent_or_the_same_error_raised(outcome_of, enforce):
    for given in (None, "tml-given", "sk-given", FRESH, EXPIRED):
        mine = outcome_of(lambda _, given=given: credentials.resolve(given, enforce_command=enforce).token(), ours)
        assert mine == outcome_of(lambda _, given=given: asyncio.run(async_token(given, enforce)), theirs), given


class Gate(BaseHTTPRequestHandler):
    """Answers what it is asked for by the key: `tml-403` gets 403. The SDK's configuration is always there."""

    def answer(self, status):
        body = b'{"supported_models": []}' if status == 200 else b'{"detail": "no"}'
        self.send_response(status)
        for header, value in {"content-type": "application/json", "content-length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(self.path)
        self.answer(int(self.headers["x-api-key"].removeprefix("tml-")))

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(200)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def gate():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# What the SDK raises too; it takes half a minute to, for it closes a client that has things to tell.
REFUSALS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    402: "BillingError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
}


@pytest.mark.parametrize("status", [200, *REFUSALS])
def test_a_server_is_asked_once_and_a_refusal_is_raised(gate, monkeypatch, outcome_of, status):
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{gate.server_port}/")
    monkeypatch.setenv("TINKER_API_KEY", f"tml-{status}")
    gate.asked.clear()
    told = outcome_of(lambda t: t.auth.raise_if_tinker_not_accessible(), ours)
    assert gate.asked == ["/api/v1/get_server_capabilities"]
    assert told == REFUSALS.get(status, ("NoneType", "None"))


def test_a_server_that_is_not_there_is_told_of_without_a_wait(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as closed:
        monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{closed.server_port}")
    monkeypatch.setenv("TINKER_API_KEY", "tml-a")
    with pytest.raises(ours.APIConnectionError, match="get_server_capabilities could not be reached"):
        ours.auth.raise_if_tinker_not_accessible()


def test_a_check_without_a_credential_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TINKER_API_KEY", "TINKER_CREDENTIAL_CMD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ours.TinkerError, match="TINKER_API_KEY"):
        ours.auth.raise_if_tinker_not_accessible()


def test_in_this_process_nobody_needs_credentials(monkeypatch, tmp_path):
    for name in ("TINKER_BASE_URL", "TINKER_API_KEY", "TINKER_CREDENTIAL_CMD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ours.auth.tinker_has_credentials()
    assert ours.auth.get_tinker_token() is None
    ours.auth.raise_if_tinker_not_accessible()


def test_a_credential_does_not_print_its_key():
    assert "tml-secret" not in repr(credentials.KeyCredential("tml-secret"))
