"""Plugins that say who may come in, in front of a real server."""

import threading

import httpx
import pytest

from tests.server.conftest import MODEL, echo_config
from tests.serving import serving
from weaver.errors import NotAuthenticated
from weaver.operators import Authenticator
from weaver.registry import load_registry
from weaver.service import Service


def proxy(headers):
    if headers.get("x-forwarded-user") != "ada":
        raise NotAuthenticated("come through the proxy")
    return "ada"


@pytest.fixture
def guarded(tmp_path):
    """The URL of a server with these authenticators and keys."""
    opened = []

    def start(*functions, api_keys=()):
        registry = load_registry()
        registry.authenticators.update({one.__name__: Authenticator(one.__name__, one) for one in functions})
        service = Service(echo_config(tmp_path / str(len(opened))), registry)
        context = serving(service, api_keys)
        opened.append((context, service))
        return context.__enter__()

    yield start
    for context, service in opened:
        context.__exit__(None, None, None)
        service.close()


def test_who_is_refused_is_told_why_and_others_come_in(guarded):
    url = guarded(proxy)
    refused = httpx.get(f"{url}/api/v1/get_server_capabilities")
    assert (refused.status_code, refused.json()) == (401, {"detail": "come through the proxy"})
    assert httpx.get(f"{url}/api/v1/get_server_capabilities", headers={"X-Forwarded-User": "ada"}).status_code == 200
    assert httpx.get(f"{url}/api/v1/losses").status_code == 401


def test_every_one_must_agree_and_the_keys_too(guarded):
    def second(headers):
        if "x-second" not in headers:
            raise NotAuthenticated("say so twice")
        return "second"

    url = guarded(proxy, second, api_keys=("tml-key",))
    given = {"X-API-Key": "tml-key", "X-Forwarded-User": "ada", "X-Second": "yes"}
    address = f"{url}/api/v1/get_server_capabilities"
    assert httpx.get(address, headers=given).status_code == 200
    for name in given:
        assert httpx.get(address, headers={key: one for key, one in given.items() if key != name}).status_code == 401


def test_one_that_raises_lets_nobody_in_and_is_named(guarded):
    def broken(headers):
        raise OSError("no directory server")

    refused = httpx.get(f"{guarded(broken)}/api/v1/losses")
    assert refused.status_code == 500
    assert "the authenticator 'broken' failed: OSError: no directory server" in refused.json()["detail"]


def test_one_that_waits_does_not_hold_others_up(guarded):
    gate, waits = threading.Event(), threading.Event()

    def slow(headers):
        if headers.get("x-slow"):
            waits.set()
            assert gate.wait(30)
        return "anybody"

    url = guarded(slow)
    done = []
    thread = threading.Thread(target=lambda: done.append(httpx.get(f"{url}/api/v1/losses", headers={"X-Slow": "1"})))
    thread.start()
    assert waits.wait(30)
    assert httpx.get(f"{url}/api/v1/losses").status_code == 200
    assert not done
    gate.set()
    thread.join()
    assert done[0].status_code == 200


def test_the_hubs_routes_ask_too(guarded):
    url = guarded(proxy)
    refused = httpx.get(f"{url}/api/models/{MODEL}/revision/main")
    assert refused.status_code == 401
    assert refused.headers["X-Error-Message"] == "come through the proxy"
