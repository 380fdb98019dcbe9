"""The driver: what an agent asks, as calls to libvirt and work on files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt  # type: ignore[import-untyped]
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.errors import DeviceDetachFailed, KilonovaError, NotFound, TryElsewhere
from kilonova.domain.network import Vif
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.hypervisor.guest import Guest, GuestEvent, GuestOnHost, HostInventory
from kilonova.hypervisor.libvirt import agent, console_address, diagnostics, host, interfaces, kvm, power
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.daemon import Daemon
from kilonova.hypervisor.libvirt.description import Describer, domain_name, root_device_name
from kilonova.hypervisor.libvirt.disks import CONSOLE_SOCKET, GuestDisks
from kilonova.hypervisor.libvirt.domain.domain import Domain
from kilonova.hypervisor.libvirt.events import Events, power_state
from kilonova.hypervisor.libvirt.images import ImageCache
from kilonova.hypervisor.libvirt.snapshots import Snapshots
from kilonova.services.image import ImageSource

log = structlog.get_logger(__name__)

LIBVIRT_THREADS = 12
FILE_THREADS = 6
NETWORK_DEVICES = Path("/sys/class/net")
SOFT_REBOOT_SIGNAL_INTERVAL = 5.0
"""Seconds. A guest that is still starting misses a signal, so it is repeated."""
AGENT_LIMIT = 40.0
"""Seconds that the agent inside a guest may take to answer."""
MEMORY_LIMIT = 1500.0
"""Seconds that writing a guest's memory to the disk, or reading it, may take."""
DETACH_ATTEMPTS, DETACH_WAIT, DETACH_PAUSE = 8, 20.0, 0.1
"""How often a guest is asked to let go of a device, and seconds: for each attempt, and between looks."""
LOOKS_AFTER_GAP = (0.0, 2.0, 8.0)
"""Seconds before each comparison of guests after a lost connection. A libvirtd that has just started lists guests
that ended before it as running, and tells no event when it finds out."""
LONGEST_WAIT_FOR_EVENT = 1.0
"""Seconds after which the state is asked for although no event came (it may have been lost)."""


class LibvirtDriver:
    """Guests of one host.

    Args:
        directory: holds the guests' files and the image cache.
        daemon: the libvirtd to use. With a `PrivateDaemon`, `directory` is its `data`.
        images: where images come from.
        installation: id of the installation; only guests marked with it are touched.
        vnc_listen: address of the guests' screens. spice: show them by SPICE as well as by VNC.
    """

    name = "libvirt"

    def __init__(
        self, directory: Path, daemon: Daemon, images: ImageSource, clock: Clock, *, installation: str,
        vnc_listen: str = "127.0.0.1", spice: bool = False,
    ) -> None:
        self._directory = directory
        self._daemon = daemon
        self._clock = clock
        self._installation = installation
        self._vnc_listen = vnc_listen
        self._spice = spice
        self._libvirt_threads = ThreadPoolExecutor(LIBVIRT_THREADS, "libvirt")
        self._file_threads = ThreadPoolExecutor(FILE_THREADS, "guest-files")
        cache = ImageCache(directory / "images", images, self._file_threads)
        self._disks = GuestDisks(directory, daemon, cache, self._file_threads)
        self._snapshots = Snapshots(self._disks, daemon, clock, self._file_threads)
        self._ours: set[str] = set()
        self._catching_up: set[asyncio.Task[None]] = set()
        self._events: Events
        self._connection: Connection
        self._host: host.HostCapabilities
        self._describer: Describer

    async def start(self, on_event: Callable[[GuestEvent], None]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._file_threads, self._disks.make_directories)
        self._events = Events(on_event, self._is_ours)
        self._connection = Connection(
            self._daemon, self._libvirt_threads, self._clock, on_open=self._events.register,
            on_close=self._events.unregister, on_reopened=self._catch_up,
        )
        try:
            await self._connect()
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await self._connection.open()
        verdict = await loop.run_in_executor(self._file_threads, kvm.verdict, self._directory / "kvm.json")
        if not verdict.usable:
            log.warning("guests are emulated and slow, because KVM is not usable", reason=verdict.reason)
        virt: host.Virt = "kvm" if verdict.usable else "qemu"
        self._host = await self._connection.call(lambda connection: host.capabilities(connection, virt))
        direct = await loop.run_in_executor(self._file_threads, host.direct_io, self._directory)
        self._describer = Describer(
            host=self._host, installation=self._installation, cache="none" if direct else "writeback",
            vnc_listen=self._vnc_listen, spice=self._spice,
        )
        self._events.remember({guest.uuid: guest.power_state for guest in await self.guests()})

    async def close(self) -> None:
        for task in tuple(self._catching_up):
            task.cancel()
        await asyncio.gather(*self._catching_up, return_exceptions=True)
        await self._events.close()
        await self._connection.close()
        self._libvirt_threads.shutdown(wait=False)
        self._file_threads.shutdown(wait=False)

    async def inventory(self) -> HostInventory:
        """Also keeps the consoles' records short, since it is asked for regularly."""
        await self._disks.trim_consoles()
        return await self._connection.call(
            lambda connection: host.inventory(connection, self._host, self._directory)
        )

    async def guests(self) -> list[GuestOnHost]:
        found = await self._connection.call(self._list_ours)
        self._ours = {guest.uuid for guest in found}
        return found

    async def disks(self) -> list[str]:
        return await self._disks.owners()

    async def power_state(self, uuid: str) -> PowerState:
        """Always asked of the hypervisor. Spec: FND-40, FND-41, FND-42, PWR-01, PWR-02, PWR-03."""
        return await self._connection.call(lambda connection: power.state(connection, uuid), uuid=uuid)

    async def create_disks(self, guest: Guest) -> None:
        await self._disks.create(guest)

    def root_device_name(self, guest: Guest) -> str:
        return root_device_name(guest)

    async def delete_disks(self, uuid: str) -> None:
        """Never those of a guest that still exists. Raises KilonovaError for one."""
        self._disks.of(uuid)  # nothing else looks at what may not be a UUID
        await self._require_no_guest(uuid)
        await self._disks.delete(uuid)

    async def _require_no_guest(self, uuid: str) -> None:
        if await self._connection.call(lambda connection: power.find(connection, uuid) is not None, uuid=uuid):
            raise KilonovaError(f"The guest of instance {uuid} still uses its disks.", hint="destroy it first")

    async def prepare_disks(self, guest: Guest, *, keep_ephemeral: bool) -> None:
        await self._disks.prepare(guest, keep_ephemeral=keep_ephemeral)

    async def replace_disks(self, guest: Guest) -> None:
        """Never those of a guest that still exists. Raises KilonovaError for one."""
        await self._require_no_guest(guest.uuid)
        await self._disks.replace(guest)

    async def restore_disks(self, uuid: str) -> None:
        if await self._disks.has_old(uuid):
            await self._require_no_guest(uuid)
        await self._disks.restore(uuid)

    async def drop_old_disks(self, uuid: str) -> None:
        await self._disks.drop_old(uuid)

    async def prepare_rescue(self, guest: Guest) -> None:
        self._describe(guest)  # refuses what cannot be attached, before anything is made
        await self._disks.prepare_rescue(guest)

    async def drop_rescue(self, uuid: str) -> None:
        await self._disks.drop_rescue(uuid)
    async def resize_disks(self, old: Guest, new: Guest, *, keep: str) -> None:
        await self._require_off(old.uuid)
        await self._disks.resize(old, new, keep=keep)

    async def revert_disks(self, old: Guest, *, keep: str) -> None:
        await self._require_off(old.uuid)
        await self._disks.revert(old, keep=keep)

    async def drop_kept_disks(self, uuid: str, *, keep: str) -> None:
        await self._disks.drop_kept(uuid, keep=keep)

    async def _require_off(self, uuid: str) -> None:
        """Raises KilonovaError for a guest that uses its disks."""
        if await self.power_state(uuid) not in GUEST_OFF:
            raise KilonovaError(f"The guest of instance {uuid} still uses its disks.", hint="power it off first")

    async def plug(self, guest: Guest) -> None:
        """Make sure that the bridges are there; libvirt makes the tap devices when the guest starts."""
        for vif in guest.vifs:
            _need_bridge(vif)

    async def unplug(self, uuid: str, vif_devnames: tuple[str, ...]) -> None:
        """Nothing: a tap device ends with the QEMU that holds it."""

    async def attach_interface(self, guest: Guest, vif: Vif) -> None:
        _need_bridge(vif)
        device = self._describer.interface(guest, vif)
        await self._connection.call(
            lambda connection: interfaces.attach(connection, guest.uuid, device), uuid=guest.uuid
        )

    async def detach_interface(self, uuid: str, vif: Vif) -> None:
        """A guest that is still starting does not hear that it is to let go of a device: it is told again."""
        for _ in range(DETACH_ATTEMPTS):
            there = await self._connection.call(
                lambda connection: interfaces.ask_to_let_go(connection, uuid, vif.mac), uuid=uuid
            )
            give_up = self._clock.monotonic() + DETACH_WAIT
            while there and self._clock.monotonic() < give_up:
                await self._clock.sleep(DETACH_PAUSE)
                there = await self._connection.call(
                    lambda connection: interfaces.has(connection, uuid, vif.mac), uuid=uuid
                )
            if not there:
                await self._connection.call(
                    lambda connection: interfaces.forget(connection, uuid, vif.mac), uuid=uuid
                )
                return
        raise DeviceDetachFailed(
            vif.devname, uuid, f"the guest did not let go of it in {DETACH_ATTEMPTS} attempts of {DETACH_WAIT:.0f} s."
        )

    async def spawn(self, guest: Guest, *, paused: bool = False) -> None:
        described = self._describe(guest)
        await self._connection.call(
            lambda connection: power.start(connection, described, paused=paused), uuid=guest.uuid
        )
        self._ours.add(guest.uuid)

    async def resume(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.resume(connection, uuid), uuid=uuid)

    async def pause(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.pause(connection, uuid), uuid=uuid)

    async def suspend(self, uuid: str) -> None:
        await self._connection.call(
            lambda connection: power.suspend(connection, uuid), uuid=uuid, limit=MEMORY_LIMIT
        )

    async def wake(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.wake(connection, uuid), uuid=uuid, limit=MEMORY_LIMIT)
        self._ours.add(uuid)

    async def destroy(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.forget(connection, uuid), uuid=uuid)
        self._ours.discard(uuid)
        self._events.forget(uuid)

    async def power_off(self, uuid: str, *, grace: float, interval: float) -> None:
        """Cancelling it ends the wait and leaves the guest as it is. Spec: PWR-05, PWR-06, PWR-07, PWR-16."""
        if grace > 0 and await self._shut_down(uuid, grace, interval):
            return
        await self._connection.call(lambda connection: power.cut(connection, uuid), uuid=uuid)

    async def power_on(self, guest: Guest) -> None:
        await self.spawn(guest)

    async def soft_reboot(self, guest: Guest, *, wait: float) -> bool:
        """A guest that is off already (a repeated command) is started."""
        if not await self._shut_down(guest.uuid, wait, SOFT_REBOOT_SIGNAL_INTERVAL):
            return False
        await self.spawn(guest)
        return True

    async def hard_reboot(self, guest: Guest) -> None:
        described = self._describe(guest)

        def reboot(connection: libvirt.virConnect) -> None:
            power.cut(connection, guest.uuid)
            power.start(connection, described, paused=False)

        await self._connection.call(reboot, uuid=guest.uuid)
        self._ours.add(guest.uuid)

    async def set_password(self, uuid: str, user: str, password: str) -> None:
        await self._connection.call(
            lambda connection: agent.set_password(connection, uuid, user, password), uuid=uuid, limit=AGENT_LIMIT
        )

    async def inject_nmi(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.inject_nmi(connection, uuid), uuid=uuid)

    async def diagnostics(self, uuid: str) -> Diagnostics:
        virt = self._host.virt
        return await self._connection.call(
            lambda connection: diagnostics.common(connection, uuid, driver=self.name, hypervisor=virt), uuid=uuid
        )

    async def own_diagnostics(self, uuid: str) -> OwnDiagnostics:
        return await self._connection.call(lambda connection: diagnostics.own(connection, uuid), uuid=uuid)

    async def console_output(self, uuid: str, limit: int) -> bytes:
        try:
            return await self._disks.console_tail(uuid, limit)
        except FileNotFoundError as error:
            raise NotFound(f"Instance {uuid} has no console record on this host.") from error

    async def console(self, uuid: str, kind: ConsoleKind) -> ConsoleAddress:
        """Graphics listen where libvirt found a free port; the serial console is a socket beside its record."""
        socket = self._disks.of(uuid) / CONSOLE_SOCKET
        return await self._connection.call(
            lambda connection: console_address.find(connection, uuid, kind, socket), uuid=uuid
        )
    async def snapshot(self, uuid: str, image_id: str) -> None:
        await self._snapshots.make(self._connection, uuid, image_id)

    def snapshot_data(self, uuid: str, image_id: str) -> AsyncIterator[bytes]:
        return self._snapshots.data(uuid, image_id)

    async def discard_snapshot(self, uuid: str, image_id: str) -> None:
        await self._snapshots.discard(self._connection, uuid, image_id)

    def _describe(self, guest: Guest) -> Domain:
        return self._describer.describe(guest, self._disks.names_for_qemu(guest.uuid))

    async def _shut_down(self, uuid: str, wait: float, interval: float) -> bool:
        """Press the power button until the guest is off. Returns whether it is."""
        deadline = self._clock.monotonic() + wait
        changed = self._events.watch(uuid)
        press_at = 0.0
        try:
            while True:
                changed.clear()
                now = self._clock.monotonic()
                if now >= press_at:
                    found = await self._connection.call(
                        lambda connection: power.press_button(connection, uuid), uuid=uuid
                    )
                    press_at = now + max(interval, LONGEST_WAIT_FOR_EVENT)
                else:
                    found = await self.power_state(uuid)
                if found in GUEST_OFF:
                    return True
                left = deadline - self._clock.monotonic()
                if left <= 0 or found is not PowerState.RUNNING:  # a guest that stands still obeys nobody
                    return False
                await _wait(changed, min(left, LONGEST_WAIT_FOR_EVENT))
        finally:
            self._events.unwatch(uuid, changed)

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
        task = asyncio.get_running_loop().create_task(self._compare_after_gap())
        self._catching_up.add(task)
        task.add_done_callback(self._catching_up.discard)

    async def _compare_after_gap(self) -> None:
        for pause in LOOKS_AFTER_GAP:
            await self._clock.sleep(pause)
            try:
                found = await self.guests()
            except KilonovaError as error:
                log.warning("guests could not be listed after a lost connection", error=str(error))
            else:
                self._events.compare({guest.uuid: guest.power_state for guest in found})


def _need_bridge(vif: Vif) -> None:
    if not (NETWORK_DEVICES / vif.bridge).exists():
        raise TryElsewhere(f"Bridge {vif.bridge!r} of port {vif.id} does not exist on this host.")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return  # the caller looks for itself


__all__ = ["LibvirtDriver", "domain_name"]
