"""Snapshots: a guest's root disk copied into one file that depends on no other.

A guest that runs is copied by its QEMU, as its disk is at the moment at which the copy begins, while it goes on
writing; the disk of one that is off is copied by qemu-img. The copy appears under its name when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from enum import Enum
from pathlib import Path
from typing import BinaryIO, TypeVar

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.clock import Clock
from kilonova.domain.errors import InvalidInput, NotFound, Retryable
from kilonova.hypervisor.libvirt import power, qemu_img
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.daemon import Daemon
from kilonova.hypervisor.libvirt.disks import GuestDisks
from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.hypervisor.libvirt.files import finished, flush, remove_partials, whole
from kilonova.hypervisor.libvirt.freeze import Freezer
from kilonova.hypervisor.libvirt.images import ID
from kilonova.shapes.quiesce import Quiesce

T = TypeVar("T")

CHUNK = 1 << 20
"""Bytes that are read at once."""
END_LIMIT = 60.0
"""Seconds in which QEMU must end a copy when it is told to."""
LOOK_PAUSE = 0.2
"""Seconds between looks at a copy that QEMU makes."""


class Copy(Enum):
    """What has become of a copy that QEMU makes."""

    RUNNING = 1
    DONE = 2
    FAILED = 3


class Snapshots:
    """Makes and reads the copies, which lie beside the disks of their instances and go with them."""

    def __init__(self, disks: GuestDisks, daemon: Daemon, clock: Clock, workers: Executor, freezer: Freezer) -> None:
        self._freezer = freezer
        self._disks = disks
        self._daemon = daemon
        self._clock = clock
        self._workers = workers

    async def make(self, connection: Connection, uuid: str, image_id: str, quiesce: Quiesce) -> None:
        """Copy, unless that was done. What an earlier attempt has left is removed first.

        Raises:
            NotFound: the instance has no disk. TryElsewhere: no space. Retryable: the copy was cut off.
            NotSupported: its file systems cannot be held still. KilonovaError: they may be held still for ever.
        """
        target = self._file(uuid, image_id)
        if await self._run(target.exists):
            return
        await self._give_up(connection, uuid)
        disk = self._disks.of(uuid) / "disk"
        if not await self._run(disk.exists):
            raise NotFound(f"Instance {uuid} has no disk on this host.")
        with whole(target) as partial:
            if await self._begin(connection, uuid, disk, partial, quiesce):
                await self._copied(connection, uuid)
            else:
                await qemu_img.flatten(disk, partial)
            await self._run(flush, partial)  # which takes long, and not in the event loop

    async def data(self, uuid: str, image_id: str) -> AsyncIterator[bytes]:
        """Raises NotFound."""
        try:
            file = await self._run(_open, self._file(uuid, image_id))
        except FileNotFoundError as error:
            raise NotFound(f"Instance {uuid} has no snapshot {image_id} on this host.") from error
        with file:
            while chunk := await self._run(file.read, CHUNK):
                yield chunk

    async def discard(self, connection: Connection, uuid: str, image_id: str) -> None:
        """End the copy and remove the file."""
        target = self._file(uuid, image_id)
        await self._freezer.thaw(connection, uuid)
        await self._give_up(connection, uuid)
        await self._run(lambda: target.unlink(missing_ok=True))

    def _file(self, uuid: str, image_id: str) -> Path:
        if not ID.fullmatch(image_id):
            raise InvalidInput(f"{image_id!r} is not an image id.")
        return self._disks.of(uuid) / f"snapshot-{image_id}.qcow2"

    async def _give_up(self, connection: Connection, uuid: str) -> None:
        await self._end(connection, uuid)
        await self._run(remove_partials, self._disks.of(uuid))

    async def _begin(
        self, connection: Connection, uuid: str, disk: Path, target: Path, quiesce: Quiesce
    ) -> bool:
        """Let QEMU copy the disk of a guest that runs. Returns False for one that is off."""
        source, copy = str(self._daemon.guest_path(disk)), str(self._daemon.guest_path(target))
        size = await connection.call(lambda open_: _size(open_, uuid, source), uuid=uuid)
        if size is None:
            return False
        await self._run(self._make_empty, target, size)
        async with self._freezer.held(connection, uuid, quiesce):
            return await connection.call(lambda open_: _begin(open_, uuid, source, copy), uuid=uuid)

    def _make_empty(self, target: Path, size: int) -> None:
        """QEMU runs as somebody who makes no files here."""
        qemu_img.create_empty(target, size)
        if self._daemon.guest_owner is not None:
            os.chown(target, *self._daemon.guest_owner)

    async def _copied(self, connection: Connection, uuid: str) -> None:
        """Wait until it has. Raises Retryable: it was cut off (the guest went off, perhaps)."""
        try:
            while True:
                found = await connection.call(lambda open_: _look(open_, uuid), uuid=uuid)
                if found is Copy.DONE:
                    return
                if found is Copy.FAILED:
                    raise Retryable(f"The copy of the disk of instance {uuid} was cut off.")
                await self._clock.sleep(LOOK_PAUSE)
        except BaseException:
            # Whoever waits no longer wants no copy; if libvirt does not answer, the next attempt ends it.
            await asyncio.shield(asyncio.gather(self._end(connection, uuid), return_exceptions=True))
            raise

    async def _end(self, connection: Connection, uuid: str) -> None:
        """End a copy that QEMU makes, and wait until it lets go of its file. Raises Retryable: it does not."""
        give_up = self._clock.monotonic() + END_LIMIT
        while await connection.call(lambda open_: _ending(open_, uuid), uuid=uuid):
            if self._clock.monotonic() > give_up:
                raise Retryable(f"The copy of the disk of instance {uuid} does not end.")
            await self._clock.sleep(LOOK_PAUSE)

    async def _run(self, fn: Callable[..., T], *arguments: object) -> T:
        return await finished(asyncio.get_running_loop().run_in_executor(self._workers, fn, *arguments))


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _size(connection: libvirt.virConnect, uuid: str, source: str) -> int | None:
    """Bytes that a guest that runs sees of its disk; None for one that is off."""
    domain = power.find(connection, uuid)
    if domain is None or not domain.isActive():
        return None
    capacity: int = domain.blockInfo(_device(domain, source))[0]
    return capacity


def _begin(connection: libvirt.virConnect, uuid: str, source: str, target: str) -> bool:
    domain = power.find(connection, uuid)
    if domain is None or not domain.isActive():
        return False
    backup = make("domainbackup", mode="push")
    disk = add(add(backup, "disks"), "disk", name=_device(domain, source), backup=True, type="file")
    add(disk, "driver", type="qcow2")
    add(disk, "target", file=target)
    domain.backupBegin(ET.tostring(backup, encoding="unicode"), None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)
    return True


def _device(domain: libvirt.virDomain, source: str) -> str:
    """The name that a disk of the guest has in libvirt. Raises NotFound."""
    for disk in ET.fromstring(domain.XMLDesc(0)).iterfind("devices/disk"):
        if disk.find(f"source[@file='{source}']") is not None and (target := disk.find("target")) is not None:
            return target.get("dev", "")
    raise NotFound(f"Instance {domain.UUIDString()} does not run from its disk.")


def _look(connection: libvirt.virConnect, uuid: str) -> Copy:
    domain = power.find(connection, uuid)
    if domain is None or not domain.isActive():
        return Copy.FAILED
    if domain.jobStats(0).get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE:
        return Copy.RUNNING
    ended = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
    backup = ended.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
    return Copy.DONE if backup and ended.get("type") == libvirt.VIR_DOMAIN_JOB_COMPLETED else Copy.FAILED


def _ending(connection: libvirt.virConnect, uuid: str) -> bool:
    """Tell a copy that is being made to end. Returns whether there is one."""
    domain = power.find(connection, uuid)
    if domain is None or not domain.isActive() or not _copies(domain):
        return False
    try:
        domain.abortJob()
    except libvirt.libvirtError:
        if domain.isActive() and _copies(domain):
            raise
    return True


def _copies(domain: libvirt.virDomain) -> bool:
    return bool(domain.jobStats(0).get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP)
