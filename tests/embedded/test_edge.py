"""What the HTTP edge of every embedded service does alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from identity_cloud import IdentityCloud, Session, identity_cloud

from kilonova.db.database import Database
from kilonova.db.schema import API
from kilonova.db.upgrade import ensure
from kilonova.embedded.http import LARGEST_BODY
from kilonova.embedded.image import EmbeddedImage
from kilonova.embedded.image.records import Limits
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring
from kilonova.embedded.placement import EmbeddedPlacement
from kilonova.roles.web import Prefixes


@dataclass(frozen=True)
class Edge:
    """All embedded services behind one client."""

    cloud: IdentityCloud
    http: httpx.AsyncClient

    async def call(self, method: str, path: str, session: Session, body: object = None, **more: str) -> httpx.Response:
        headers = {"X-Auth-Token": session.token} | {name.replace("_", "-"): value for name, value in more.items()}
        return await self.http.request(method, path, json=body, headers=headers)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    database = Database.open("sqlite://")
    await ensure(database, API)

    async def told(name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        raise AssertionError("no port is plugged")

    async with identity_cloud(tmp_path) as cloud:
        images = EmbeddedImage(database, tmp_path / "images", cloud.clock, cloud.identity, "http://identity",
                               limits=Limits(keep_free=0))
        await images.recover()
        networks = EmbeddedNetwork(database, cloud.clock, cloud.identity, "http://identity", FakeWiring(), told)
        await networks.start()
        prefixes = Prefixes()
        prefixes.mount({
            "/identity": cloud.identity.application(), "/image": images.application(),
            "/network": networks.application(),
            "/placement": EmbeddedPlacement(
                database, cloud.clock, identity=cloud.identity, identity_url="http://identity"),
        })
        async with httpx.AsyncClient(transport=httpx.ASGITransport(prefixes), base_url="http://cloud.test") as http:
            yield Edge(cloud, http)
        await networks.close()
        await images.close()
    await database.close()


@pytest.mark.parametrize(("method", "path", "media_type"), [
    ("POST", "/identity/v3/auth/tokens", "application/json"),
    ("POST", "/image/v2/images", "application/json"),
    ("PATCH", "/image/v2/images/5e8a0b2c-0000-4000-8000-000000000000",
     "application/openstack-images-v2.1-json-patch"),
    ("POST", "/network/v2.0/networks", "application/json"),
    ("PUT", "/placement/traits/CUSTOM_LARGE", "application/json"),
])
async def test_a_body_that_never_ends_is_refused_where_it_has_become_too_large(
    edge: Edge, method: str, path: str, media_type: str
) -> None:
    token = (await edge.cloud.admin()).token
    headers = {"X-Auth-Token": token, "Content-Type": media_type, "OpenStack-API-Version": "placement 1.39"}
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    if path.startswith("/image/v2/images/"):
        made = await edge.http.post("/image/v2/images", json={"name": "one"}, headers={"X-Auth-Token": token})
        path = f"/image/v2/images/{made.json()['id']}"
    async with asyncio.timeout(20):
        answer = await edge.http.request(method, path, content=endless(), headers=headers)
    assert answer.status_code == 413, answer.text
    assert f"larger than {LARGEST_BODY} bytes" in answer.text
    assert sent <= LARGEST_BODY + 2 * 65536


async def test_image_data_has_limits_of_its_own(edge: Edge) -> None:
    session = await edge.cloud.admin()
    described = {"name": "large", "disk_format": "raw", "container_format": "bare"}
    image = (await edge.call("POST", "/image/v2/images", session, described)).json()["id"]
    headers = {"X-Auth-Token": session.token, "Content-Type": "application/octet-stream"}
    content = bytes(LARGEST_BODY + 1)
    answer = await edge.http.put(f"/image/v2/images/{image}/file", content=content, headers=headers)
    assert answer.status_code == 204, answer.text
    shown = (await edge.call("GET", f"/image/v2/images/{image}", session)).json()
    assert shown["size"] == len(content)
