"""An embedded identity service for tests: its clock, an HTTP client, and sessions of its users."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.embedded.identity.bootstrap import BootstrapResult
from kilonova.embedded.identity.service import EmbeddedIdentity

ADMIN_PASSWORD = "the administrator's"
BASE = "http://cloud.test"
START_LIMIT = 30.0


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, now: float = 1_800_000_000.25) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        self._now += seconds

    def advance(self, seconds: float) -> None:
        self._now += seconds


@dataclass(frozen=True)
class Session:
    """Requests with one token."""

    http: httpx.AsyncClient
    token: str
    body: dict[str, Any]

    async def call(self, method: str, path: str, json: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(
            method, f"/identity/v3{path}", json=json, headers={"X-Auth-Token": self.token} | named
        )

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.call("GET", path, **headers)

    async def make(self, path: str, **attributes: Any) -> dict[str, Any]:
        """Create one at /v3/<path>s; returns it as answered."""
        answer = await self.call("POST", f"/{path}s", {path: attributes})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()[path]
        return made

    async def role_id(self, name: str) -> str:
        found = (await self.get(f"/roles?name={name}")).json()["roles"]
        assert len(found) == 1, found
        role_id: str = found[0]["id"]
        return role_id

    async def grant(self, user_id: str, role: str, on: str) -> None:
        """on: `projects/<id>`, `domains/<id>` or `system`."""
        answer = await self.call("PUT", f"/{on}/users/{user_id}/roles/{await self.role_id(role)}")
        assert answer.status_code == 204, answer.text

    async def still_works(self) -> bool:
        answer = await self.get("/auth/projects")
        assert answer.status_code in (200, 401), answer.text
        return answer.status_code == 200


@dataclass(frozen=True)
class IdentityCloud:
    identity: EmbeddedIdentity
    database: Database
    clock: ManualClock
    made: BootstrapResult
    http: httpx.AsyncClient

    async def authenticate(self, identity: dict[str, Any], scope: Any = None) -> httpx.Response:
        auth = {"identity": identity} | ({} if scope is None else {"scope": scope})
        return await self.http.post("/identity/v3/auth/tokens", json={"auth": auth})

    async def session(self, identity: dict[str, Any], scope: Any = None) -> Session:
        answer = await self.authenticate(identity, scope)
        assert answer.status_code == 201, answer.text
        return Session(self.http, answer.headers["X-Subject-Token"], answer.json()["token"])

    async def admin(self) -> Session:
        return await self.session(password("admin", ADMIN_PASSWORD), on_project("admin"))

    async def member(self, name: str = "alice", *roles: str) -> Session:
        """A new user with a password like its name, and roles on a new project of the same name."""
        admin = await self.admin()
        project = await admin.make("project", name=name)
        user = await admin.make("user", name=name, password=name)
        for role in roles or ("member",):
            await admin.grant(user["id"], role, f"projects/{project['id']}")
        return await self.session(password(name, name), on_project(name))


def password(name: str, secret: str) -> dict[str, Any]:
    user = {"name": name, "domain": {"id": "default"}, "password": secret}
    return {"methods": ["password"], "password": {"user": user}}


def with_token(token: str) -> dict[str, Any]:
    return {"methods": ["token"], "token": {"id": token}}


def with_credential(credential: dict[str, Any]) -> dict[str, Any]:
    named = {"id": credential["id"], "secret": credential["secret"]}
    return {"methods": ["application_credential"], "application_credential": named}


def on_project(name: str) -> dict[str, Any]:
    return {"project": {"name": name, "domain": {"name": "Default"}}}


@asynccontextmanager
async def identity_cloud(directory: Path, url: str | None = None) -> AsyncIterator[IdentityCloud]:
    """A bootstrapped service with keys and (unless a database URL is given) a database in the directory."""
    database = Database.open(url or f"sqlite:///{directory}/identity.db")
    clock = ManualClock()
    identity = EmbeddedIdentity(database, directory / "keys", clock, BASE)
    try:
        made = await identity.bootstrap(ADMIN_PASSWORD)
        transport = httpx.ASGITransport(mounted(identity))
        async with httpx.AsyncClient(transport=transport, base_url=BASE, follow_redirects=False) as http:
            yield IdentityCloud(identity, database, clock, made, http)
    finally:
        identity.close()
        await database.close()


def mounted(identity: EmbeddedIdentity) -> ASGIApp:
    return Starlette(routes=[Mount("/identity", identity.application())])


class _Server(uvicorn.Server):
    """Says when it listens, and leaves the signals to the test runner."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@asynccontextmanager
async def identity_server(directory: Path) -> AsyncIterator[str]:
    """A service on a port of its own, for real clients; yields its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    database = Database.open(f"sqlite:///{directory}/identity.db")
    identity = EmbeddedIdentity(database, directory / "keys", SystemClock(), url)
    await identity.bootstrap(ADMIN_PASSWORD)
    server = _Server(uvicorn.Config(mounted(identity), log_level="warning", lifespan="off"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server._serve([listener]))
        try:
            await asyncio.wait_for(server.listening.wait(), START_LIMIT)
            yield url
        finally:
            server.handle_exit(signal.SIGTERM, None)
    identity.close()
    await database.close()
