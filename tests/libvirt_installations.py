"""Private libvirtds for tests, and guests without an operating system, which start fast."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from signed_images import rules

from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import ImageNotFound, NotFound
from kilonova.domain.image import Image
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.guest import Guest, GuestEvent, GuestMetadata
from kilonova.hypervisor.libvirt.cells import CpuSets
from kilonova.hypervisor.libvirt.daemon import PrivateDaemon
from kilonova.hypervisor.libvirt.driver import LibvirtDriver
from kilonova.imaging.signatures import ImageSignatures
from kilonova.services.secrets import Purpose

D = TypeVar("D", bound=Driver)


class FileImages:
    """Images that are files of the test. `fetches` counts how often the bytes of each were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.described: dict[str, Image] = {}
        self.fetches: dict[str, int] = {}
        self.local = False
        self.hold: asyncio.Event | None = None

    def add(self, file: Path, *, disk_format: str = "qcow2", size: int | None = None) -> Image:
        image = Image(
            id=str(uuid.uuid4()), disk_format=disk_format, size=file.stat().st_size if size is None else size
        )
        self.files[image.id] = file
        self.described[image.id] = image
        return image

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        if image_id not in self.described:
            raise ImageNotFound(image_id)
        return self.described[image_id]

    async def data(self, image_id: str) -> AsyncIterator[bytes]:
        self.fetches[image_id] = self.fetches.get(image_id, 0) + 1
        with self.files[image_id].open("rb") as file:
            while chunk := file.read(65536):
                if self.hold is not None:
                    await asyncio.wait_for(self.hold.wait(), 10)
                yield chunk

    def local_path(self, image_id: str) -> Path | None:
        return self.files[image_id] if self.local else None

    async def delete(self, image_id: str) -> None:
        self.files.pop(image_id, None)


class MemorySecrets:
    """Secrets as long as the test runs."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Purpose], str] = {}
        self.owners: list[str] = []

    async def make(self, instance: str, purpose: Purpose, owner: str) -> None:
        if (instance, purpose) not in self.values:
            self.values[instance, purpose] = secrets.token_hex(32)
            self.owners.append(owner)

    async def value(self, instance: str, purpose: Purpose) -> str:
        if (instance, purpose) not in self.values:
            raise NotFound(f"Instance {instance} has no secret for its {purpose}.")
        return self.values[instance, purpose]


@dataclass
class Installation:
    """A directory with a private libvirtd and the guests of one test run."""

    directory: Path
    images: FileImages = field(default_factory=FileImages)
    secrets: MemorySecrets = field(default_factory=MemorySecrets)

    nbd_tls: Path | None = None

    def daemon(self) -> PrivateDaemon:
        return PrivateDaemon(
            self.directory / "libvirt", self.directory / "guests", SystemClock(), nbd_tls=self.nbd_tls
        )

    def driver(
        self, *, installation: str = "tests", cpu_sets: CpuSets | None = None, spice: bool = False
    ) -> LibvirtDriver:
        return LibvirtDriver(
            self.directory / "guests", self.daemon(), self.images, SystemClock(), installation=installation,
            secrets=self.secrets, signatures=self.signatures, cpu_sets=cpu_sets, spice=spice,
        )

    @property
    def certificates(self) -> Path:
        """The directory of the certificates that its host knows."""
        return self.directory / "certificates"

    @property
    def signatures(self) -> ImageSignatures:
        return rules(self.certificates)

    def libvirtd_pid(self) -> int:
        return int((self.directory / "libvirt/run/libvirtd.pid").read_text())

    def supervisor_pid(self) -> int:
        return int((self.directory / "libvirt/supervisor.pid").read_text())


def make_installation() -> Installation:
    # Not pytest's directory: a socket's path must be short.
    return Installation(Path(tempfile.mkdtemp(prefix="kn-", dir="/var/tmp")))


async def remove_installation(installation: Installation) -> None:
    """Destroy its guests, stop its daemons, remove its files."""
    instances = installation.directory / "guests/instances"
    if installation.daemon().is_running() or (instances.exists() and any(instances.iterdir())):
        driver = installation.driver()
        await driver.start(lambda _event: None)
        for guest in await driver.guests():
            await driver.destroy(guest.uuid)
        await driver.close()
        await installation.daemon().stop()
    shutil.rmtree(installation.directory)


class Listener:
    """Collects events and waits for one."""

    def __init__(self) -> None:
        self.events: list[GuestEvent] = []
        self._arrived = asyncio.Event()

    def __call__(self, event: GuestEvent) -> None:
        self.events.append(event)
        self._arrived.set()

    def of(self, uuid: str) -> list[str]:
        return [event.transition for event in self.events if event.uuid == uuid]

    async def until(self, uuid: str, transition: str) -> None:
        async with asyncio.timeout(20):
            while transition not in self.of(uuid):
                self._arrived.clear()
                await self._arrived.wait()


def empty_guest(**changes: object) -> Guest:
    """A guest without a disk: it runs its firmware and obeys no power button."""
    one = str(uuid.uuid4())
    metadata = GuestMetadata(
        instance_uuid=one, name="empty", hostname="empty", project_id="p", flavor_name="tiny"
    )
    values: dict[str, object] = {
        "uuid": one, "name": "empty", "project_id": "p", "user_id": "u", "vcpus": 1, "memory_mib": 64,
        "root_gib": 0, "metadata": metadata, "properties": {"hw_video_model": "none"},
    }
    return Guest(**(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def started(driver: D, listener: Listener | None = None) -> AsyncIterator[D]:
    """A driver that runs during the block, and leaves nothing on its host."""
    await driver.start(listener or Listener())
    yield driver
    for guest in await driver.guests():
        await driver.destroy(guest.uuid)
    for owner in await driver.disks():
        await driver.delete_disks(owner)
    await driver.close()


async def eventually(condition: Callable[[], Awaitable[bool]], limit: float = 20.0) -> None:
    """Wait until it holds; fail after `limit` seconds."""
    async with asyncio.timeout(limit):
        while not await condition():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.02)


def qemu_pid(installation: Installation, name: str) -> int:
    """The process of a running domain."""
    return int((installation.directory / f"libvirt/run/qemu/{name}.pid").read_text())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
