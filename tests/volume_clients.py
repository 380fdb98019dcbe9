"""The volume service of tests as the compute service has it: in the process, over the bus, and over HTTP as Cinder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from image_cloud import served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from volume_cloud import VolumeCloud

from kilonova.bus.local import LocalBus
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Unauthorized
from kilonova.embedded.volume.api.application import application
from kilonova.embedded.volume.client import VolumeClient
from kilonova.services.cinder import Cinder, VolumeServiceOptions, cinder
from kilonova.services.identity import Token
from kilonova.services.volume_calls import RemoteVolumes, VolumeCalls
from kilonova.services.volumes import VolumeService

OWN_PROJECT = "d" * 32
"""Of the account of the compute service."""


class Identity:
    """Gives the compute service tokens for its own project and, where it has a role, for others.

    Args:
        no_role: projects in which it has none. revoked: tokens that are not valid any more.
    """

    def __init__(self) -> None:
        self.given: list[str] = []
        self.no_role: set[str] = set()
        self.revoked: set[str] = set()

    async def sign_in(self, request: Request) -> JSONResponse:
        auth = (await request.json())["auth"]
        project = auth["scope"]["project"].get("id", OWN_PROJECT)
        if project in self.no_role or auth["identity"]["password"]["user"]["password"] != "s3cret":
            return JSONResponse({"error": {"code": 401, "message": "no role"}}, 401)
        token = f"{project} {len(self.given)}"
        self.given.append(token)
        return JSONResponse({"token": {"project": {"id": project}}}, 201, {"X-Subject-Token": token})

    async def validate(self, token: str, **_: object) -> Token:
        if token not in self.given or token in self.revoked:
            raise Unauthorized("The request you have made requires authentication.")
        return Token(user_id="compute", user_name="compute", user_domain_id="default", project_id=token.split()[0],
                     project_domain_id="default", roles=("admin", "service", "member"))

    async def project_exists(self, project_id: str) -> bool:
        return True

    async def limits(self, service: str, project_id: str | None) -> dict[str, int]:
        return {}


class Line:
    """What requests come by. requests: those that came, with their headers.

    Args:
        lose: answers to lose, by the method and the beginning of the path: what was asked for is done nevertheless.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._application = application
        self.lose: list[tuple[str, str]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((method, path, headers))
        lost = next((one for one in self.lose if one[0] == method and one[1] in path), None)

        async def swallow(message: Message) -> None:
            return None

        if lost is None:
            await self._application(scope, receive, send)
            return
        self.lose.remove(lost)
        await self._application(scope, receive, swallow)
        await JSONResponse({"error": "gateway timeout"}, 504)(scope, receive, send)


@dataclass
class Clients:
    """client: an implementation. cloud: the service that it is of."""

    client: VolumeService
    cloud: VolumeCloud


@dataclass
class OverHttp(Clients):
    client: Cinder
    identity: Identity
    line: Line


@asynccontextmanager
async def in_process(directory: Path) -> AsyncIterator[Clients]:
    cloud = VolumeCloud(directory)
    service = await cloud.start()
    try:
        yield Clients(VolumeClient(service), cloud)
    finally:
        await cloud.close()


@asynccontextmanager
async def over_the_bus(directory: Path) -> AsyncIterator[Clients]:
    async with in_process(directory) as here:
        bus = LocalBus()
        calls = VolumeCalls(here.client, bus)
        await calls.start()
        try:
            yield Clients(RemoteVolumes(bus, SystemClock()), here.cloud)
        finally:
            await calls.close()
            await bus.close()


@asynccontextmanager
async def over_http(directory: Path) -> AsyncIterator[OverHttp]:
    async with in_process(directory) as here:
        identity = Identity()
        line = Line(application(here.cloud.volumes, identity, "http://identity.test"))
        routes = [Route("/identity/v3/auth/tokens", identity.sign_in, methods=["POST"]), Mount("/volume", line)]
        password = directory / "password"
        password.write_text("s3cret\n")
        async with served(Starlette(routes=routes)) as port:
            root = f"http://127.0.0.1:{port}"
            client = cinder(VolumeServiceOptions(
                endpoint=f"{root}/volume", auth_url=f"{root}/identity/v3", username="compute",
                password_file=str(password),
            ))
            yield OverHttp(client, here.cloud, identity, line)


IMPLEMENTATIONS = {"embedded": in_process, "over the bus": over_the_bus, "cinder": over_http}
