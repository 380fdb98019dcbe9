"""A whole cloud in this process, with simulated hosts, as operators meet it: through its HTTP interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from kilonova.audit.report import Healing, Report
from kilonova.cli.demo_cloud import DemoCloud, Server
from kilonova.cli.installation import State, running_state, sign_in
from kilonova.cli.session import Session
from kilonova.config import load
from kilonova.control.documents import OperationList, OperationView
from kilonova.db.database import Database
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.roles.one_machine import OneMachine

T = TypeVar("T")
LIMIT = 30.0
"""Seconds that anything may take."""


@dataclass
class ControlCloud:
    """Args: database: a connection of its own to the database of the cloud, for planting and looking."""

    machine: OneMachine
    state: State
    session: Session
    database: Database
    image: str = ""
    network: str = ""

    @property
    def api(self) -> DemoCloud:
        return DemoCloud(self.state, self.session)

    def hypervisor(self, host: str) -> FakeHypervisor:
        for agent in self.machine.agents:
            if agent.host == host:
                assert isinstance(agent._driver, FakeDriver)
                return agent._driver.hypervisor
        raise LookupError(host)

    async def headers(self) -> dict[str, str]:
        """With the token of the administrator."""
        return await asyncio.to_thread(self.session._headers)

    async def get(self, path: str, type_: Any = Any) -> Any:
        return await asyncio.to_thread(self.session.get, f"{self.state.control_url}{path}", type_)

    async def post(self, path: str, body: Any = None, type_: Any = Any) -> Any:
        return await asyncio.to_thread(self.session.post, f"{self.state.control_url}{path}", body, type_)

    async def audit(self) -> Report:
        found: Report = await self.get("/audit", Report)
        return found

    async def heal(self) -> Healing:
        found: Healing = await self.post("/audit/heal", None, Healing)
        return found

    async def operations(self, query: str = "") -> list[OperationView]:
        found: OperationList = await self.get(f"/operations?{query}", OperationList)
        return list(found.operations)

    async def operation(self, id_: str) -> OperationView:
        found: OperationView = await self.get(f"/operations/{id_}", OperationView)
        return found

    async def ask_for_server(self, name: str = "one", flavor: str = "m1.nano") -> str:
        """Returns its id as soon as it is accepted."""
        if not self.image:
            self.image, self.network = await asyncio.to_thread(self._prepare)
        return await asyncio.to_thread(self._create, name, flavor)

    def _create(self, name: str, wanted: str) -> str:
        flavors = self.session.get(f"{self.state.compute_url}/flavors")["flavors"]
        body = {
            "name": name, "imageRef": self.image, "key_name": "key", "networks": [{"uuid": self.network}],
            "flavorRef": next(flavor["id"] for flavor in flavors if flavor["name"] == wanted),
        }
        created = self.session.post(f"{self.state.compute_url}/servers", {"server": body}, version="2.79")
        return str(created["server"]["id"])

    def _prepare(self) -> tuple[str, str]:
        session, state = self.session, self.state
        key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1E5EQ0mTcLzpCqvbwC7rUqFjRnN2q1vXJkVw0n3m2Z t"
        session.post(f"{state.compute_url}/os-keypairs", {"keypair": {"name": "key", "public_key": key}})
        described = {"name": "image", "disk_format": "raw", "container_format": "bare"}
        image = session.post(f"{state.image_url}/v2/images", described)["id"]
        httpx.put(
            f"{state.image_url}/v2/images/{image}/file", content=b"x" * 512,
            headers=session._headers() | {"Content-Type": "application/octet-stream"},
        ).raise_for_status()
        (network,) = session.get(f"{state.network_url}/v2.0/networks?name=private")["networks"]
        return image, network["id"]

    async def server(self, name: str = "one") -> Server:
        """A server that is ready."""
        id_ = await self.ask_for_server(name)

        async def ready() -> Server | None:
            found = await asyncio.to_thread(self.api.server, id_)
            assert found is not None and found.status != "ERROR", found
            return found if found.status == "ACTIVE" else None

        return await until(ready)

    async def volume(self) -> str:
        """A volume that is there. Only of `cloud_with_pool`."""
        url = self.state.image_url.replace("/image", "/volume/v3/volumes")
        answer = await asyncio.to_thread(self.session.post, url, {"volume": {"size": 1}})
        volume: str = answer["volume"]["id"]

        async def there() -> bool | None:
            found = await asyncio.to_thread(self.session.get, f"{url}/{volume}")
            return True if found["volume"]["status"] == "available" else None

        await until(there)
        return volume

    async def delete(self, server: str) -> None:
        await asyncio.to_thread(self.api.delete_server, server)

        async def gone() -> bool | None:
            return True if await asyncio.to_thread(self.api.server, server) is None else None

        await until(gone)


def kinds(report: Report) -> list[tuple[str, str]]:
    """What an audit has found: kinds of differences, and of what."""
    return [(one.kind.value, one.object) for one in report.differences]


async def until(look: Callable[[], Any]) -> Any:
    """Look until there is something."""
    async with asyncio.timeout(LIMIT):
        while (found := await look()) is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
        return found


@asynccontextmanager
async def control_cloud(
    directory: Path, *, hosts: int = 2, latency: float = 0.0, options: Mapping[str, Any] | None = None, name: str = ""
) -> AsyncIterator[ControlCloud]:
    """Args: options: further ones of the configuration, by name. name: of one that was there before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    base = directory / (name or uuid.uuid4().hex[:8])
    config = load(None, {}, {
        "data_dir": str(base), "agent.driver": "fake", "agent.hosts": hosts, "agent.fake_latency": latency,
        "agent.host": "host", "api.port": port, **(options or {}),
    })
    machine = OneMachine(config, lambda _component, _doing: None)
    await machine.start()
    database = Database.open(f"sqlite:///{base}/kilonova.db")
    try:
        state = await asyncio.to_thread(running_state, base)
        assert state is not None
        yield ControlCloud(machine, state, await asyncio.to_thread(sign_in, state), database)
    finally:
        await database.close()
        await machine.close()


@asynccontextmanager
async def cloud_with_pool(directory: Path, **options: Any) -> AsyncIterator[ControlCloud]:
    """With one storage pool, in a directory with a short name, because sockets are made below it."""
    with tempfile.TemporaryDirectory(prefix="kn-", dir="/var/tmp") as pool:
        given = {"volume.pool": [{"name": "fast", "directory": pool}], **options}
        try:
            async with control_cloud(directory, options=given) as running:
                yield running
        finally:
            end_daemon(Path(pool))


def end_daemon(pool: Path) -> None:
    """End the daemon of a storage pool, which outlives the cloud."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((pool / "daemon" / "daemon.pid").read_text()), signal.SIGKILL)
