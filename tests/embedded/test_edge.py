"""What the HTTP edge of every embedded service does alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from identity_cloud import IdentityCloud, Session, identity_cloud, with_credential

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


HOUR = 3600.0
READS = {
    "identity": "/identity/v3/auth/projects", "image": "/image/v2/images", "network": "/network/v2.0/networks",
    "placement": "/placement/resource_providers",
}


async def limited(edge: Edge, *rules: dict[str, str]) -> Session:
    """A session of the administrator by a credential that has these access rules."""
    admin = await edge.cloud.admin()
    path = f"/users/{admin.body['user']['id']}/application_credentials"
    wanted = {"name": "limited", "access_rules": list(rules)}
    made = await admin.call("POST", path, {"application_credential": wanted})
    assert made.status_code == 201, made.text
    return await edge.cloud.session(with_credential(made.json()["application_credential"]))


@pytest.mark.spec("EMI-48")
@pytest.mark.parametrize("service", READS)
async def test_access_rules_hold_at_each_service(edge: Edge, service: str) -> None:
    below = READS[service].removeprefix(f"/{service}")
    session = await limited(edge, {"service": service, "method": "GET", "path": below})
    for name, path in READS.items():
        answer = await edge.call("GET", path, session)
        assert answer.status_code == (200 if name == service else 401), (name, answer.text)
    assert (await edge.call("POST", READS[service], session, {})).status_code == 401
    assert (await edge.call("GET", f"{READS[service]}/one", session)).status_code == 401


@pytest.mark.spec("EMI-48")
async def test_any_of_several_access_rules_will_do(edge: Edge) -> None:
    session = await limited(
        edge, {"service": "image", "method": "GET", "path": "/v2/images"},
        {"service": "image", "method": "GET", "path": "/v2/images/{id}/members"},
        {"service": "network", "method": "GET", "path": "/v2.0/**"},
    )
    for path, status in (
        ("/image/v2/images", 200), ("/image/v2/images/one/members", 404), ("/image/v2/images/one", 401),
        ("/network/v2.0/ports", 200), ("/network/v2.0/ports/one", 404), ("/placement/traits", 401),
    ):
        assert (await edge.call("GET", path, session)).status_code == status, path


@pytest.mark.spec("EMI-49")
@pytest.mark.parametrize("path", READS.values(), ids=READS)
async def test_a_service_token_must_be_valid_and_a_services(edge: Edge, path: str) -> None:
    admin = await edge.cloud.admin()
    service = await edge.cloud.identity.service_token("nova")
    assert (await edge.call("GET", path, admin, X_Service_Token=service)).status_code == 200
    for refused, reason in ((admin.token, "does not hold the role service"), ("rubbish", "is not valid")):
        answer = await edge.call("GET", path, admin, X_Service_Token=refused)
        assert answer.status_code == 401
        assert reason in answer.text
    edge.cloud.clock.advance(HOUR)
    answer = await edge.call("GET", path, await edge.cloud.admin(), X_Service_Token=service)
    assert answer.status_code == 401, "it has expired"


@pytest.mark.spec("EMI-50")
@pytest.mark.parametrize("path", READS.values(), ids=READS)
async def test_a_service_vouches_for_a_user_whose_token_has_expired(edge: Edge, path: str) -> None:
    admin = await edge.cloud.admin()
    edge.cloud.clock.advance(2 * HOUR)
    assert (await edge.call("GET", path, admin)).status_code == 401
    service = await edge.cloud.identity.service_token("nova")
    assert (await edge.call("GET", path, admin, X_Service_Token=service)).status_code == 200
    assert (await edge.call("GET", path, admin)).status_code == 401
    edge.cloud.clock.advance(47 * HOUR)
    service = await edge.cloud.identity.service_token("nova")
    assert (await edge.call("GET", path, admin, X_Service_Token=service)).status_code == 401, "out of the window"


@pytest.mark.spec("EMI-50")
async def test_the_call_is_the_users_not_the_services(edge: Edge) -> None:
    alice = await edge.cloud.member("alice")
    edge.cloud.clock.advance(2 * HOUR)
    service = await edge.cloud.identity.service_token("nova")
    made = await edge.call("POST", "/image/v2/images", alice, {"name": "mine"}, X_Service_Token=service)
    assert (made.status_code, made.json()["owner"]) == (201, alice.body["project"]["id"])
    refused = await edge.call("GET", "/placement/resource_providers", alice, X_Service_Token=service)
    assert refused.status_code == 403
