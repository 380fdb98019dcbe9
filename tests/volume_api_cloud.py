"""The HTTP API of a volume service for tests: the real one over simulated pools, and people who call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from image_cloud import ALICE, IDENTITY_URL, PEOPLE, StandInIdentity
from starlette.types import ASGIApp
from volume_cloud import VolumeCloud

from kilonova.db.database import Database
from kilonova.embedded.volume.api.application import application

LATEST = "3.71"


class Person:
    """Somebody's view of the service: requests with a token, under the prefix /volume.

    Args:
        version: of the API that is asked for, None for what one gets without asking.
        service: a token of a service that vouches for the person.
    """

    def __init__(
        self, http: httpx.AsyncClient, token: str, version: str | None = LATEST, service: str | None = None
    ) -> None:
        self.http = http
        self.token = token
        self.version = version
        self.service = service

    @property
    def project(self) -> str:
        return PEOPLE[self.token][0]

    def at(self, version: str | None) -> Person:
        return Person(self.http, self.token, version, self.service)

    def vouched(self) -> Person:
        return Person(self.http, self.token, self.version, "service")

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        headers = {"X-Auth-Token": self.token} | options.pop("headers", {})
        if self.version is not None:
            headers["OpenStack-API-Version"] = f"volume {self.version}"
        if self.service is not None:
            headers["X-Service-Token"] = self.service
        if body is not None:
            options["json"] = body
        return await self.http.request(method, f"/volume/v3{path}", headers=headers, **options)

    async def get(self, path: str, status: int = 200) -> Any:
        return _body(await self.call("GET", path), status)

    async def post(self, path: str, body: Any, status: int = 202) -> Any:
        return _body(await self.call("POST", path, body), status)

    async def put(self, path: str, body: Any, status: int = 200) -> Any:
        return _body(await self.call("PUT", path, body), status)

    async def delete(self, path: str, status: int = 202) -> Any:
        return _body(await self.call("DELETE", path), status)

    async def act(self, path: str, action: str, value: Any = None, status: int = 202) -> Any:
        """An action of a volume (its id), or of another resource (its path)."""
        where = path if path.startswith("/") else f"/volumes/{path}"
        return await self.post(f"{where}/action", {action: value}, status)

    async def names(self, query: str = "", plural: str = "volumes") -> list[str]:
        return [one["name"] for one in (await self.get(f"/{plural}{query}"))[plural]]


def _body(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


class ApiCloud(VolumeCloud):
    http: httpx.AsyncClient
    application: ASGIApp

    def person(self, token: str, version: str | None = LATEST) -> Person:
        return Person(self.http, token, version)

    async def made(self, person: Person, **body: Any) -> dict[str, Any]:
        """A volume that a person has made, when it is there."""
        answer = await person.post("/volumes", {"volume": {"size": 1} | body})
        await self.settle()
        volume: dict[str, Any] = (await person.get(f"/volumes/{answer['volume']['id']}"))["volume"]
        assert volume["status"] == "available", volume
        return volume

    async def status(self, person: Person, volume_id: str) -> str:
        """Of a volume, when nothing works on it any more."""
        await self.settle()
        status: str = (await person.get(f"/volumes/{volume_id}"))["volume"]["status"]
        return status


@asynccontextmanager
async def api_cloud(directory: Path, url: str | None = None) -> AsyncIterator[ApiCloud]:
    """url: of the database, None for one in the directory."""
    cloud = ApiCloud(directory)
    if url is not None:
        await cloud.database.close()
        cloud.database = Database.open(url)
    service = await cloud.start()
    cloud.application = application(service, StandInIdentity(), IDENTITY_URL)
    transport = httpx.ASGITransport(cloud.application, root_path="/volume")
    cloud.http = httpx.AsyncClient(transport=transport, base_url="http://cloud.test", timeout=30)
    try:
        yield cloud
    finally:
        await cloud.http.aclose()
        await cloud.close()


__all__ = ["ALICE", "ApiCloud", "Person", "api_cloud"]
