"""Which endpoints open without a key: read from the routes, so that a new one cannot be forgotten."""

import asyncio
import re

import httpx
import pytest

from weaver.server.app import create_app

OPEN = {
    "/api/v1/healthz",
    "/api/v1/external_weights/{run}/{name}/{file}",  # signed links
    "/api/v1/archives/{run}/{kind}/{name}.tar",
    "/api/v1/sessions/{session_id}/trace",
    "/api/v1/artifact-files/{artifact_id}/{name}",
}


def endpoints():
    paths = create_app(object()).openapi()["paths"]
    return sorted((method, path) for path, methods in paths.items() for method in methods)


def test_there_are_endpoints_to_check():
    assert {path for _, path in endpoints()} > OPEN | {"/api/v1/sessions/search", "/api/v1/asample"}


@pytest.mark.parametrize(("method", "path"), endpoints())
def test_every_endpoint_but_signed_links_and_health_needs_a_key(method, path):
    async def ask():
        transport = httpx.ASGITransport(create_app(object(), ["tml-right"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://weaver") as client:
            return await client.request(method, re.sub(r"\{[^}]*\}", "x", path), headers={"X-API-Key": "tml-wrong"})

    assert (asyncio.run(ask()).status_code != 401) == (path in OPEN)
