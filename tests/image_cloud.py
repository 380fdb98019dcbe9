"""An image service for tests: the real one over a private directory, with a stand-in for identity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Unauthorized
from kilonova.embedded.image import EmbeddedImage, ImportRules, Limits
from kilonova.services.identity import Token

ALICE, BOB, ADMIN = "a" * 32, "b" * 32, "c" * 32
"""Project ids; the token of each member is its name."""

PEOPLE = {
    "alice": (ALICE, ("member", "reader")),
    "alice-reader": (ALICE, ("reader",)),
    "bob": (BOB, ("member", "reader")),
    "admin": (ADMIN, ("admin", "member", "reader")),
    "service": ("d" * 32, ("service",)),
}
IDENTITY_URL = "http://identity.test/identity"

V20 = "application/openstack-images-v2.0-json-patch"
V21 = "application/openstack-images-v2.1-json-patch"


class StandInIdentity:
    """Knows PEOPLE; their names are their tokens. unified: limits of all projects."""

    def __init__(self) -> None:
        self.unified: dict[str, int] = {}

    async def validate(self, token: str, **_: Any) -> Token:
        if token not in PEOPLE:
            raise Unauthorized("The request you have made requires authentication.")
        project, roles = PEOPLE[token]
        return Token(user_id=f"{token}-id", user_name=token, user_domain_id="default", project_id=project,
                     project_name=token, project_domain_id="default", roles=roles)

    async def project_exists(self, project_id: str) -> bool:
        return any(project == project_id for project, _ in PEOPLE.values())

    async def limits(self, service: str, project_id: str | None) -> dict[str, int]:
        assert service == "glance"
        return self.unified


class TestClock(SystemClock):
    """Moves by itself only as far as `tick` says, so that records have an order."""

    __test__ = False

    def __init__(self) -> None:
        self.time = 1_800_000_000.25

    def now(self) -> float:
        self.time += 1.0
        return self.time


class Person:
    """Somebody's view of the service: requests with a token, under the prefix /image."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self.http = http
        self.token = token

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"X-Auth-Token": self.token} | options.pop("headers", {})
        return await self.http.request(method, f"/image{path}", headers=headers, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.call("GET", path, **options)

    async def create(self, **body: Any) -> dict[str, Any]:
        answer = await self.call("POST", "/v2/images", json={"disk_format": "raw", "container_format": "bare"} | body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def show(self, image: dict[str, Any]) -> dict[str, Any]:
        answer = await self.get(f"/v2/images/{image['id']}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def put(self, image: dict[str, Any], data: Any, where: str = "file", **headers: str) -> httpx.Response:
        return await self.call("PUT", f"/v2/images/{image['id']}/{where}", content=data,
                               headers={"Content-Type": "application/octet-stream"} | headers)

    async def make(self, data: bytes = b"data", **body: Any) -> dict[str, Any]:
        """An active image."""
        image = await self.create(**body)
        answer = await self.put(image, data)
        assert answer.status_code == 204, answer.text
        return await self.show(image)

    async def patch(self, image: dict[str, Any], *changes: dict[str, Any], media_type: str = V21) -> httpx.Response:
        return await self.call("PATCH", f"/v2/images/{image['id']}", json=list(changes),
                               headers={"Content-Type": media_type})

    async def names(self, query: str = "") -> list[str]:
        answer = await self.get(f"/v2/images{query}")
        assert answer.status_code == 200, answer.text
        return [image["name"] for image in answer.json()["images"]]

    async def until(self, image: dict[str, Any], status: str) -> dict[str, Any]:
        """Poll as clients do until the image has this status."""
        async with asyncio.timeout(20):
            while True:
                found = await self.show(image)
                if found["status"] == status:
                    return found
                await asyncio.sleep(0.01)


class Upload:
    """A body that a test sends piece by piece; the service's reading of each piece can be awaited."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._wanted = asyncio.Event()

    async def send(self, piece: bytes) -> None:
        """Send, and return when the receiver has asked for more."""
        self._wanted.clear()
        self._pieces.put_nowait(piece)
        async with asyncio.timeout(20):
            await self._wanted.wait()

    def end(self) -> None:
        self._pieces.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self._wanted.set()
            piece = await self._pieces.get()
            if piece is None:
                return
            yield piece


class Cloud:
    """The service with its database and directory; `restart` ends it as a crash would."""

    def __init__(self, directory: Path, url: str, limits: Limits, rules: ImportRules, *,
                 unified_limits: bool) -> None:
        self.directory = directory
        self.clock = TestClock()
        self.identity = StandInIdentity()
        self._url = url
        self._limits = limits
        self._rules = rules
        self._unified_limits = unified_limits

    async def start(self) -> None:
        self.database = Database.open(self._url)
        self.service = EmbeddedImage(self.database, self.directory / "images", self.clock, self.identity,
                                     IDENTITY_URL, limits=self._limits, import_rules=self._rules,
                                     unified_limits=self._unified_limits)
        await self.service.recover()
        transport = httpx.ASGITransport(self.service.application(), root_path="/image")
        self.http = httpx.AsyncClient(transport=transport, base_url="http://cloud.test", timeout=30)

    async def stop(self) -> None:
        await self.http.aclose()
        await self.service.close()
        await self.database.close()

    def person(self, token: str) -> Person:
        return Person(self.http, token)

    def files(self) -> list[str]:
        """All files of the image directory, as directory/name."""
        root = self.directory / "images"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@asynccontextmanager
async def image_cloud(directory: Path, *, url: str | None = None, limits: Limits | None = None,
                      rules: ImportRules | None = None, unified_limits: bool = False) -> AsyncIterator[Cloud]:
    cloud = Cloud(directory, url or f"sqlite:///{directory / 'image.db'}", limits or Limits(keep_free=0),
                  rules or ImportRules(), unified_limits=unified_limits)
    await cloud.start()
    try:
        yield cloud
    finally:
        await cloud.stop()


@asynccontextmanager
async def served(application: Any) -> AsyncIterator[int]:
    """Serve an ASGI application on a free port of loopback; gives the port."""
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            while not server.started:  # noqa: ASYNC110 - uvicorn offers no event for it
                await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running
