"""A placement service for tests: the real one over a private database, with a stand-in for identity."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from kilonova.db import placement
from kilonova.db.api_schema import api_metadata
from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Unauthorized
from kilonova.embedded.placement import EmbeddedPlacement
from kilonova.hypervisor.guest import HostInventory
from kilonova.services.identity import Token

PEOPLE = {
    "admin": ("p-admin", ("admin", "member", "reader")),
    "service": ("p-service", ("service",)),
    "alice": ("p-alice", ("member", "reader")),
}
INVENTORY = HostInventory(
    hostname="n",
    hypervisor_type="QEMU",
    hypervisor_version=7002022,
    vcpus=8,
    memory_mib=8704,
    local_gib=100,
    disk_available_gib=90,
    memory_free_mib=8000,
    traits=("COMPUTE_VOLUME_EXTEND", "HW_CPU_X86_AVX"),
)
SMALL = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 10}


class People:
    """An identity service whose tokens are names."""

    async def validate(self, token: str, **_: Any) -> Token:
        if token not in PEOPLE:
            raise Unauthorized("The request you have made requires authentication.")
        project, roles = PEOPLE[token]
        return Token(user_id=token, user_name=token, user_domain_id="default", project_id=project, roles=roles)

    async def project_exists(self, project_id: str) -> bool:
        return True


class Cloud:
    """The service under a prefix, and a client of it."""

    def __init__(self, db: Database, app: Starlette, client: httpx.AsyncClient) -> None:
        self.db = db
        self.app = app
        self.client = client

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: str | None = "1.39",
        token: str = "admin",
        status: int | None = None,
        **more: Any,
    ) -> httpx.Response:
        headers = {"X-Auth-Token": token, **more.pop("headers", {})}
        if version is not None:
            headers["OpenStack-API-Version"] = f"placement {version}"
        content = {} if body is None else {"json": body}
        response = await self.client.request(method, f"/placement{path}", headers=headers, **content, **more)
        if status is not None:
            assert response.status_code == status, response.text
        return response

    async def get(self, path: str, **more: Any) -> Any:
        return (await self.call("GET", path, status=200, **more)).json()

    async def host(self, name: str = "h1") -> str:
        return await self.db.write(lambda c: placement.report(c, name, name, INVENTORY, now=1.0))

    async def claim(self, provider: str, consumer: str | None = None, **resources: int) -> str:
        consumer = consumer or str(uuid.uuid4())
        assert await self.db.write(
            lambda c: placement.claim(c, consumer, provider, resources or SMALL, "p-alice", "alice")
        )
        return consumer

    async def provider(self, name: str, parent: str | None = None, **inventories: int) -> str:
        body = {"name": name} | ({"parent_provider_uuid": parent} if parent else {})
        made = (await self.call("POST", "/resource_providers", body, status=200)).json()
        offers = {key: {"total": total} for key, total in inventories.items()}
        await self.call(
            "PUT",
            f"/resource_providers/{made['uuid']}/inventories",
            status=200,
            body={"inventories": offers, "resource_provider_generation": 0},
        )
        return str(made["uuid"])


@pytest.fixture(name="cloud")
async def placement_cloud() -> AsyncIterator[Cloud]:
    db = Database.open("sqlite://")
    await db.write(lambda connection: api_metadata.create_all(connection))
    service = EmbeddedPlacement(db, SystemClock(), identity=People(), identity_url="http://cloud.test/identity")
    app = Starlette(routes=[Mount("/placement", app=service)])
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://cloud.test") as client:
        yield Cloud(db, app, client)
    await db.close()
