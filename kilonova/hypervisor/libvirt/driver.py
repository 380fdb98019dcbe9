"""The driver: what an agent asks, as calls to libvirt and work on files."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from pathlib import Path

import libvirt  # type: ignore[import-untyped]
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import PowerState
from kilonova.domain.trail import Threads
from kilonova.hypervisor.guest import GuestEvent, GuestOnHost, HostInventory
from kilonova.hypervisor.libvirt import host, kvm, power
from kilonova.hypervisor.libvirt.calls.devices import DeviceCalls
from kilonova.hypervisor.libvirt.calls.disks import DiskCalls
from kilonova.hypervisor.libvirt.calls.guests import GuestCalls
from kilonova.hypervisor.libvirt.calls.interfaces import InterfaceCalls
from kilonova.hypervisor.libvirt.calls.power import PowerCalls
from kilonova.hypervisor.libvirt.calls.volume_files import VolumeFileCalls
from kilonova.hypervisor.libvirt.calls.volumes import VolumeCalls
from kilonova.hypervisor.libvirt.cells import CpuSets
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.daemon import Daemon
from kilonova.hypervisor.libvirt.description import Describer, domain_name
from kilonova.hypervisor.libvirt.disks import GuestDisks
from kilonova.hypervisor.libvirt.events import Events, power_state
from kilonova.hypervisor.libvirt.freeze import Freezer
from kilonova.hypervisor.libvirt.images import ImageCache
from kilonova.hypervisor.libvirt.snapshots import Snapshots
from kilonova.hypervisor.libvirt.stalls import Stalls
from kilonova.imaging.signatures import ImageSignatures
from kilonova.metadata.vendor_data import VendorData
from kilonova.services.image import ImageSource
from kilonova.services.secrets import NoVolumeKeys, SecretStore, VolumeKeys
from kilonova.shapes.screens import USB_REDIRECTION

log = structlog.get_logger(__name__)

LIBVIRT_THREADS = 12
FILE_THREADS = 6
SHARE_THREADS = 2
LOOKS_AFTER_GAP = (0.0, 2.0, 8.0)
"""Seconds before each comparison of guests after a lost connection. A libvirtd that has just started lists guests
that ended before it as running, and tells no event when it finds out."""


class LibvirtDriver(
    DiskCalls, InterfaceCalls, VolumeCalls, VolumeFileCalls, PowerCalls, GuestCalls, DeviceCalls
):
    """Guests of one host.

    Args:
        directory: holds the guests' files and the image cache.
        daemon: the libvirtd to use. With a `PrivateDaemon`, `directory` is its `data`.
        images: where images come from.
        installation: id of the installation; only guests marked with it are touched.
        secrets: where the keys of TPMs and encrypted disks are kept.
        signatures: which images must be signed, and by whom.
        vnc_listen: address of the guests' screens. spice: show them by SPICE as well as by VNC.
        cpu_sets: CPUs of the host that guests may have; None for all of them, shared.
        vendor: what the operator tells guests on their config drives; None for nothing.
        volume_keys: what encrypted volumes are opened with; None for a host that reaches no store of them.
    """

    name = "libvirt"

    def __init__(
        self, directory: Path, daemon: Daemon, images: ImageSource, clock: Clock, *, installation: str,
        secrets: SecretStore, signatures: ImageSignatures, vnc_listen: str = "127.0.0.1", spice: bool = False,
        cpu_sets: CpuSets | None = None, vendor: VendorData | None = None, volume_keys: VolumeKeys | None = None,
    ) -> None:
        self._directory = directory
        self._daemon = daemon
        self._clock = clock
        self._installation = installation
        self._secrets = secrets
        self._volume_keys = volume_keys or NoVolumeKeys()
        self._vnc_listen = vnc_listen
        self._spice = spice
        self._cpu_sets = cpu_sets or CpuSets()
        self._libvirt_threads = Threads(LIBVIRT_THREADS, "libvirt")
        self._file_threads = Threads(FILE_THREADS, "guest-files")
        self._share_threads = Threads(SHARE_THREADS, "shares")
        cache = ImageCache(directory / "images", images, signatures, self._file_threads)
        self._disks = GuestDisks(directory, daemon, cache, self._file_threads, vendor or VendorData())
        self._freezer = Freezer(self._disks, clock, self._file_threads)
        self._snapshots = Snapshots(self._disks, daemon, clock, self._file_threads, self._freezer)
        self._ours: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: Events
        self._stalls: Stalls
        self._connection: Connection
        self._host: host.HostCapabilities
        self._describer: Describer

    async def start(self, on_event: Callable[[GuestEvent], None]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._file_threads, self._disks.make_directories)
        self._events = Events(self._told(on_event), self._is_ours)
        self._connection = Connection(
            self._daemon, self._libvirt_threads, self._clock, on_open=self._events.register,
            on_close=self._events.unregister, on_reopened=self._catch_up,
        )
        self._stalls = Stalls(self._connection, self._clock)
        try:
            await self._connect()
        except BaseException:
            await self.close()
            raise

    def _told(self, on_event: Callable[[GuestEvent], None]) -> Callable[[GuestEvent], None]:
        def tell(event: GuestEvent) -> None:
            if event.power_state is PowerState.PAUSED:
                self._stalls.watch(event.uuid)
            on_event(event)

        return tell

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await self._connection.open()
        verdict = await loop.run_in_executor(self._file_threads, kvm.verdict, self._directory / "kvm.json")
        if not verdict.usable:
            log.warning("guests are emulated and slow, because KVM is not usable", reason=verdict.reason)
        virt: host.Virt = "kvm" if verdict.usable else "qemu"
        self._host = await self._connection.call(
            lambda connection: host.capabilities(connection, virt, self._cpu_sets)
        )
        if self._spice:
            self._host = dataclasses.replace(self._host, traits=self._host.traits | {USB_REDIRECTION})
        direct = await loop.run_in_executor(self._file_threads, host.direct_io, self._directory)
        self._describer = Describer(
            host=self._host, installation=self._installation, cache="none" if direct else "writeback",
            vnc_listen=self._vnc_listen, spice=self._spice,
        )
        found = {guest.uuid: guest.power_state for guest in await self.guests()}
        self._events.remember(found)
        self._watch_stalled(found)
        self._beside(self._freezer.thaw_all(self._connection, overdue=False))

    def _watch_stalled(self, found: dict[str, PowerState]) -> None:
        for uuid, state in found.items():
            if state is PowerState.PAUSED:
                self._stalls.watch(uuid)

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stalls.close()
        await self._events.close()
        await self._connection.close()
        self._libvirt_threads.shutdown(wait=False)
        self._file_threads.shutdown(wait=False)
        self._share_threads.shutdown(wait=False)

    async def inventory(self) -> HostInventory:
        """Also keeps the consoles' records short and looks for guests that were left frozen, since it is asked for
        regularly."""
        await self._disks.trim_consoles()
        self._beside(self._freezer.thaw_all(self._connection, overdue=True))
        return await self._connection.call(
            lambda connection: host.inventory(connection, self._host, self._directory)
        )

    async def guests(self) -> list[GuestOnHost]:
        found = await self._connection.call(self._list_ours)
        self._ours = {guest.uuid for guest in found}
        return found

    def _list_ours(self, connection: libvirt.virConnect) -> list[GuestOnHost]:
        found = []
        saved = power.saved(connection)
        for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
            uuid = domain.UUIDString()
            if uuid in self._ours or power.carries_mark(domain, self._installation):
                state = power_state(stats.get("state.state", 0), stats.get("state.reason", 0), saved=uuid in saved)
                found.append(GuestOnHost(uuid=uuid, name=domain.name(), power_state=state))
        return found

    async def _is_ours(self, uuid: str) -> bool:
        if uuid in self._ours:
            return True
        return await self._connection.call(
            lambda connection: power.is_marked(connection, uuid, self._installation), uuid=uuid
        )

    def _catch_up(self) -> None:
        self._beside(self._compare_after_gap())

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        """Do something that nobody waits for, until the driver is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare_after_gap(self) -> None:
        for pause in LOOKS_AFTER_GAP:
            await self._clock.sleep(pause)
            try:
                found = {guest.uuid: guest.power_state for guest in await self.guests()}
            except KilonovaError as error:
                log.warning("guests could not be listed after a lost connection", error=str(error))
            else:
                self._events.compare(found)
                self._watch_stalled(found)


__all__ = ["LibvirtDriver", "domain_name"]
