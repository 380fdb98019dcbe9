"""Guests that stand still because a volume does not answer, and how they go on.

QEMU stops a guest when one of its volumes fails, and keeps what could not be read or written. Once the server of the
volume is back and has been reached again, the guest is resumed, and QEMU does all of that then: nothing is lost, and
the guest learns nothing. A guest that was paused by a user meanwhile is marked, and left to whoever resumes it.
"""

from __future__ import annotations

import asyncio
import time
import xml.etree.ElementTree as ET

import libvirt  # type: ignore[import-untyped]
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.hypervisor.libvirt import nbd, power, volumes
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.hotplug import LIVE, disks_in
from kilonova.hypervisor.libvirt.volume_disks import source_of, target_in, volume_of
from kilonova.hypervisor.volumes import NbdSource

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.1, 2.0, 1.5
"""Seconds between looks at a guest that stands still, and by what they grow."""
KNOCKS, KNOCK_PAUSE = 3, 0.05
"""How often a client of NBD is made to read before it has surely connected again, and seconds in between."""


class Stalls:
    """Watches guests that have stopped, and lets those go on whose volumes are back."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._watching: dict[str, asyncio.Task[None]] = {}

    def watch(self, uuid: str) -> None:
        """Look at a guest that has stopped, for whatever reason, until it need not be watched."""
        if uuid not in self._watching:
            task = asyncio.get_running_loop().create_task(self._watch(uuid))
            self._watching[uuid] = task
            task.add_done_callback(lambda _done: self._watching.pop(uuid))

    async def close(self) -> None:
        """End all watches; the next driver finds the guests."""
        tasks = tuple(self._watching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, uuid: str) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                if not await self._connection.call(lambda connection: _revive(connection, uuid), uuid=uuid):
                    return
            except KilonovaError as error:
                log.warning("a guest whose volume failed cannot be looked at", instance=uuid, error=str(error))
            await self._clock.sleep(pause)
            pause = min(pause * GROWTH, LONGEST_PAUSE)


def _revive(connection: libvirt.virConnect, uuid: str) -> bool:
    """Let a guest go on if all of its volumes that have failed are back. Returns whether to look again."""
    domain = power.find(connection, uuid)
    if domain is None or not power.has_stalled(domain) or power.is_kept_paused(domain):
        return False
    errors = domain.diskErrors()
    failed = [disk for disk in disks_in(domain, LIVE) if target_in(disk) in errors]
    if not all(volume_of(disk) for disk in failed):  # a full file system of the host needs more than another attempt
        return False
    if not all(_is_back(disk) for disk in failed):
        return True
    for disk in failed:
        _reach(domain, disk)
    domain.resume()
    if power.is_kept_paused(domain):  # by somebody who found it stopped just before
        domain.suspend()
    return True


def _is_back(disk: ET.Element) -> bool:
    source = source_of(disk)
    return not isinstance(source, NbdSource) or nbd.is_served(source)


def _reach(domain: libvirt.virDomain, disk: ET.Element) -> None:
    """Let QEMU connect to the server again. It does that beside the first read, which fails."""
    node = volumes.node_of(domain, disk)["node-name"]
    for _ in range(KNOCKS):
        volumes.knock(domain, node)
        time.sleep(KNOCK_PAUSE)
