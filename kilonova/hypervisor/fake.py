"""An honest hypervisor without guests: for scale, simulation and crash tests.

It keeps the invariants of a real one: a guest needs its disks before it starts, a disk is not made twice, one
UUID is one guest. It can be told to be slow, to fail, or to hold guests that do not obey. Its state outlives the
agent, as that of a real hypervisor does: in memory (`FakeHypervisor` is handed to the next agent) or in a directory.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable

import msgspec

from kilonova.domain.clock import Clock
from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.errors import Conflict, DeviceDetachFailed, KilonovaError, NotFound, NotSupported
from kilonova.domain.network import Vif
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor import fake_diagnostics
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.hypervisor.fake_sizes import ResizableDisks, define, sizes_of
from kilonova.hypervisor.fake_state import FakeDisks, FakeGuest, FakeHypervisor, Faults
from kilonova.hypervisor.guest import Guest, GuestEvent, GuestOnHost, HostInventory
from kilonova.hypervisor.uptime import uptime
from kilonova.imaging import qcow2

DISK = qcow2.empty(1 << 20)
"""What every guest's disk holds."""

ON = (PowerState.RUNNING, PowerState.PAUSED)


class FakeDriver(ResizableDisks):
    """The driver protocol over a `FakeHypervisor`."""

    name = "fake"

    def __init__(self, hypervisor: FakeHypervisor, clock: Clock) -> None:
        self.hypervisor = hypervisor
        self._clock = clock
        self._since = clock.now()
        self._on_event: Callable[[GuestEvent], None] = lambda _event: None

    async def start(self, on_event: Callable[[GuestEvent], None]) -> None:
        self._on_event = on_event

    async def close(self) -> None:
        self._on_event = lambda _event: None
        self.hypervisor.rest()

    async def _call(self, name: str) -> None:
        """Every call takes its time and may have been told to fail."""
        faults = self.hypervisor.faults
        if faults.latency:
            await self._clock.sleep(faults.latency)
        planned = faults.fail.get(name)
        if planned:
            raise planned.pop(0)

    def _guest(self, uuid: str) -> FakeGuest:
        known = self.hypervisor.guests.get(uuid)
        return msgspec.structs.replace(known) if known is not None else FakeGuest(uuid=uuid)

    def _existing(self, uuid: str) -> FakeGuest:
        guest = self._guest(uuid)
        if not guest.disks:
            raise NotFound(f"Guest {uuid} has no disks on host {self.hypervisor.host}.")
        return guest

    def _power(self, guest: FakeGuest, state: PowerState) -> None:
        if state in ON and guest.power_state not in ON:
            guest.starts += 1
        guest.power_state = state
        self.hypervisor.keep(guest)

    def tell(self, uuid: str, transition: str, state: PowerState) -> None:
        """The guest changed by itself (it shut down, it crashed)."""
        self._power(self._existing(uuid), state)
        self._on_event(GuestEvent(uuid=uuid, transition=transition, power_state=state))

    async def inventory(self) -> HostInventory:
        h = self.hypervisor
        return HostInventory(
            hostname=h.host, hypervisor_type="fake", hypervisor_version=1000, vcpus=h.vcpus, memory_mib=h.memory_mib,
            local_gib=h.local_gib, disk_available_gib=h.local_gib, memory_free_mib=h.memory_mib,
            cpu_info='{"arch":"x86_64","model":"fake","vendor":"fake","features":[],'
            '"topology":{"cores":1,"threads":1,"sockets":1}}',
            supported=(("x86_64", "fake", "hvm"),), traits=h.traits,
            uptime=uptime(self._clock.now() - self._since, (0.0, 0.0, 0.0), self._clock.now()),
        )

    async def guests(self) -> list[GuestOnHost]:
        await self._call("guests")
        return [
            GuestOnHost(uuid=g.uuid, name=g.name, power_state=g.power_state)
            for g in self.hypervisor.guests.values() if g.defined
        ]

    async def disks(self) -> list[str]:
        return [g.uuid for g in self.hypervisor.guests.values() if g.disks]

    async def power_state(self, uuid: str) -> PowerState:
        await self._call("power_state")
        guest = self._guest(uuid)
        return guest.power_state if guest.defined else PowerState.NOSTATE

    async def create_disks(self, guest: Guest) -> None:
        await self._call("create_disks")
        record = self._guest(guest.uuid)
        if not record.disks:
            record.uses = FakeDisks(_image_of(guest), 1)
            record.sizes = sizes_of(guest)
        record.disks, record.name = True, guest.name
        self.hypervisor.keep(record)

    def root_device_name(self, guest: Guest) -> str:
        return "/dev/vda"

    async def delete_disks(self, uuid: str) -> None:
        await self._call("delete_disks")
        record = self._guest(uuid)
        if record.defined:
            raise KilonovaError(f"Guest {uuid} still uses its disks.")
        record.disks, record.prepared, record.old, record.rescue = False, None, None, None
        record.snapshots, record.kept = (), {}
        self.hypervisor.keep(record)

    async def prepare_disks(self, guest: Guest, *, keep_ephemeral: bool) -> None:
        await self._call("prepare_disks")
        record = self._guest(guest.uuid)
        record.disks = True
        record.prepared = FakeDisks(_image_of(guest), record.uses.ephemeral + (not keep_ephemeral))
        self.hypervisor.keep(record)

    async def replace_disks(self, guest: Guest) -> None:
        await self._call("replace_disks")
        record = self._existing(guest.uuid)
        if record.defined:
            raise KilonovaError(f"Guest {guest.uuid} still uses its disks.")
        if record.prepared is not None:
            record.old, record.uses, record.prepared = record.uses, record.prepared, None
        self.hypervisor.keep(record)

    async def restore_disks(self, uuid: str) -> None:
        await self._call("restore_disks")
        record = self._guest(uuid)
        if record.old is not None:
            if record.defined:
                raise KilonovaError(f"Guest {uuid} still uses its disks.")
            record.uses, record.old = record.old, None
        record.prepared = None
        self.hypervisor.keep(record)

    async def drop_old_disks(self, uuid: str) -> None:
        await self._call("drop_old_disks")
        record = self._guest(uuid)
        record.old = None
        self.hypervisor.keep(record)

    async def prepare_rescue(self, guest: Guest) -> None:
        await self._call("prepare_rescue")
        assert guest.rescue is not None
        record = self._guest(guest.uuid)
        record.disks, record.rescue = True, guest.rescue.id
        self.hypervisor.keep(record)

    async def drop_rescue(self, uuid: str) -> None:
        await self._call("drop_rescue")
        record = self._guest(uuid)
        record.rescue = None
        self.hypervisor.keep(record)

    def _start(self, guest: Guest, state: PowerState = PowerState.RUNNING) -> None:
        """Start a guest from the disks that it is to boot from; one that runs goes on as it is."""
        record = self._existing(guest.uuid)
        if guest.rescue is not None and record.rescue is None:
            raise NotFound(f"Guest {guest.uuid} has no rescue disk on host {self.hypervisor.host}.")
        if not record.defined or record.power_state not in ON:
            define(record, guest)
            record.rescued = guest.rescue is not None
        self._power(record, state)

    async def plug(self, guest: Guest) -> None:
        await self._call("plug")
        record = self._existing(guest.uuid)
        record.devnames = tuple(v.devname for v in guest.vifs)
        self.hypervisor.keep(record)

    async def unplug(self, uuid: str, vif_devnames: tuple[str, ...]) -> None:
        await self._call("unplug")
        record = self._guest(uuid)
        record.devnames = tuple(d for d in record.devnames if d not in vif_devnames)
        self.hypervisor.keep(record)

    async def attach_interface(self, guest: Guest, vif: Vif) -> None:
        await self._call("attach_interface")
        record = self._existing(guest.uuid)
        if vif.devname not in record.devnames:
            record.devnames = (*record.devnames, vif.devname)
            self.hypervisor.keep(record)

    async def detach_interface(self, uuid: str, vif: Vif) -> None:
        await self._call("detach_interface")
        record = self._guest(uuid)
        if uuid in self.hypervisor.faults.disobedient and record.power_state is PowerState.RUNNING:
            raise DeviceDetachFailed(vif.devname, uuid, "the guest does not let go of it.")
        if vif.devname in record.devnames:
            record.devnames = tuple(d for d in record.devnames if d != vif.devname)
            self.hypervisor.keep(record)

    async def spawn(self, guest: Guest, *, paused: bool = False) -> None:
        await self._call("spawn")
        record = self._existing(guest.uuid)
        if record.defined and record.power_state in ON:
            return
        self._start(guest, PowerState.PAUSED if paused else PowerState.RUNNING)

    async def resume(self, uuid: str) -> None:
        await self._call("resume")
        self._set_going(uuid, PowerState.RUNNING)

    async def pause(self, uuid: str) -> None:
        await self._call("pause")
        self._set_going(uuid, PowerState.PAUSED)

    def _set_going(self, uuid: str, state: PowerState) -> None:
        """Pause or resume a guest that is on."""
        guest = self._existing(uuid)
        if guest.power_state not in ON:
            raise KilonovaError(f"Guest {uuid} is {guest.power_state.name.lower()}.")
        self._power(guest, state)

    async def suspend(self, uuid: str) -> None:
        await self._call("suspend")
        guest = self._existing(uuid)
        if guest.power_state not in (PowerState.RUNNING, PowerState.SUSPENDED):
            raise KilonovaError(f"Guest {uuid} is {guest.power_state.name.lower()}.")
        self._power(guest, PowerState.SUSPENDED)

    async def wake(self, uuid: str) -> None:
        await self._call("wake")
        guest = self._existing(uuid)
        if guest.power_state not in (PowerState.RUNNING, PowerState.SUSPENDED):
            raise KilonovaError(f"Guest {uuid} has no saved memory.")
        guest.power_state = PowerState.RUNNING
        self.hypervisor.keep(guest)

    async def destroy(self, uuid: str) -> None:
        await self._call("destroy")
        record = self._guest(uuid)
        record.defined, record.power_state = False, PowerState.NOSTATE
        self.hypervisor.keep(record)

    async def power_off(self, uuid: str, *, grace: float, interval: float) -> None:
        await self._call("power_off")
        if grace and uuid in self.hypervisor.faults.disobedient:
            await self._clock.sleep(grace)
        guest = self._guest(uuid)
        if guest.defined:
            self._power(guest, PowerState.SHUTDOWN)

    async def power_on(self, guest: Guest) -> None:
        await self._call("power_on")
        self._start(guest)

    async def soft_reboot(self, guest: Guest, *, wait: float) -> bool:
        await self._call("soft_reboot")
        if guest.uuid in self.hypervisor.faults.disobedient:
            await self._clock.sleep(wait)
            return False
        self._power(self._existing(guest.uuid), PowerState.SHUTDOWN)
        await self._call("soft_reboot.off")
        self._power(self._existing(guest.uuid), PowerState.RUNNING)
        return True

    async def hard_reboot(self, guest: Guest) -> None:
        await self._call("hard_reboot")
        record = self._existing(guest.uuid)
        self._power(record, PowerState.SHUTDOWN)
        self._start(guest)

    async def set_password(self, uuid: str, user: str, password: str) -> None:
        await self._call("set_password")
        guest = self._existing(uuid)
        if guest.power_state is not PowerState.RUNNING:
            raise Conflict(f"Guest {uuid} does not run.")
        self.hypervisor.passwords[uuid, user] = password

    async def inject_nmi(self, uuid: str) -> None:
        await self._call("inject_nmi")
        if self._existing(uuid).power_state not in ON:
            raise Conflict(f"Guest {uuid} does not run.")

    async def diagnostics(self, uuid: str) -> Diagnostics:
        await self._call("diagnostics")
        self._existing(uuid)
        return fake_diagnostics.COMMON

    async def own_diagnostics(self, uuid: str) -> OwnDiagnostics:
        await self._call("own_diagnostics")
        self._existing(uuid)
        return fake_diagnostics.OWN

    async def console_output(self, uuid: str, limit: int) -> bytes:
        guest = self._existing(uuid)
        boots = "".join(f"boot {number}: nothing is executed here\n" for number in range(1, guest.starts + 1))
        text = f"FAKE CONSOLE OUTPUT\nguest {guest.name}\n{boots}started {guest.starts} times\nready\n"
        return text.encode()[-limit:]

    async def console(self, uuid: str, kind: ConsoleKind) -> ConsoleAddress:
        """An address where nobody listens. As on a real host, a guest may get another port at each start."""
        await self._call("console")
        guest = self._guest(uuid)
        if not guest.defined:
            raise NotFound(f"Host {self.hypervisor.host} has no guest {uuid}.")
        if guest.power_state in GUEST_OFF:
            raise Conflict(f"The guest of instance {uuid} does not run.")
        if kind is ConsoleKind.VNC:
            return ConsoleAddress(host="127.0.0.1", port=5900 + (zlib.crc32(uuid.encode()) + guest.starts) % 50_000)
        if kind is ConsoleKind.SERIAL:
            return ConsoleAddress(internal_access_path=f"/fake/{uuid}/console.sock")
        raise NotSupported(f"The guest of instance {uuid} has no {kind} console.")

    async def snapshot(self, uuid: str, image_id: str) -> None:
        await self._call("snapshot")
        guest = self._existing(uuid)
        if image_id not in guest.snapshots:
            guest.snapshots = (*guest.snapshots, image_id)
            self.hypervisor.keep(guest)

    async def snapshot_data(self, uuid: str, image_id: str) -> AsyncIterator[bytes]:
        await self._call("snapshot_data")
        if image_id not in self._guest(uuid).snapshots:
            raise NotFound(f"Guest {uuid} has no snapshot {image_id} on host {self.hypervisor.host}.")
        yield DISK

    async def discard_snapshot(self, uuid: str, image_id: str) -> None:
        await self._call("discard_snapshot")
        guest = self._guest(uuid)
        guest.snapshots = tuple(other for other in guest.snapshots if other != image_id)
        self.hypervisor.keep(guest)


def _image_of(guest: Guest) -> str:
    return guest.image.id if guest.image is not None else ""


__all__ = ["FakeDisks", "FakeDriver", "FakeGuest", "FakeHypervisor", "Faults"]
