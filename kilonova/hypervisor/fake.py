"""An honest hypervisor without guests: for scale, simulation and crash tests.

It keeps the invariants of a real one: a guest needs its disks before it starts, a disk is not made twice, one
UUID is one guest. It can be told to be slow, to fail, or to hold guests that do not obey. Its state outlives the
agent, as that of a real hypervisor does: in memory (`FakeHypervisor` is handed to the next agent) or in a directory.
"""

from __future__ import annotations

from collections.abc import Callable

from kilonova.domain.clock import Clock
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake_disks import DISK, FakeDiskCalls
from kilonova.hypervisor.fake_guests import FakeGuestCalls
from kilonova.hypervisor.fake_interfaces import FakeInterfaceCalls
from kilonova.hypervisor.fake_power import FakePowerCalls
from kilonova.hypervisor.fake_state import FakeDisks, FakeGuest, FakeHypervisor, Faults
from kilonova.hypervisor.fake_volume_files import FakeVolumeFileCalls
from kilonova.hypervisor.guest import GuestEvent, GuestOnHost, HostInventory
from kilonova.hypervisor.uptime import uptime
from kilonova.imaging.signatures import TRUSTED_CERTS
from kilonova.shapes.pci import PciDevice


class FakeDriver(FakeDiskCalls, FakeInterfaceCalls, FakePowerCalls, FakeGuestCalls, FakeVolumeFileCalls):
    """The driver protocol over a `FakeHypervisor`."""

    name = "fake"

    def __init__(self, hypervisor: FakeHypervisor, clock: Clock) -> None:
        self.hypervisor = hypervisor
        self._clock = clock
        self._since = clock.now()
        self._on_event: Callable[[GuestEvent], None] = lambda _event: None

    async def start(self, on_event: Callable[[GuestEvent], None]) -> None:
        self._on_event = on_event
        for guest in tuple(self.hypervisor.guests.values()):
            await self._thaw(guest.uuid)

    async def close(self) -> None:
        self._on_event = lambda _event: None
        self.hypervisor.rest()

    def tell(self, uuid: str, transition: str, state: PowerState) -> None:
        """The guest changed by itself (it shut down, it crashed)."""
        self._power(self._existing(uuid), state)
        self._on_event(GuestEvent(uuid=uuid, transition=transition, power_state=state))

    async def inventory(self) -> HostInventory:
        h = self.hypervisor
        return HostInventory(
            hostname=h.host, hypervisor_type="fake", hypervisor_version=1000, vcpus=h.vcpus, pcpus=h.pcpus,
            memory_mib=h.memory_mib, local_gib=h.local_gib, disk_available_gib=h.local_gib,
            memory_free_mib=h.memory_mib,
            cpu_info='{"arch":"x86_64","model":"fake","vendor":"fake","features":[],'
            '"topology":{"cores":1,"threads":1,"sockets":1}}',
            supported=(("x86_64", "fake", "hvm"),),
            traits=h.traits if h.signatures is None else (*h.traits, TRUSTED_CERTS),
            topology=h.topology,
            uptime=uptime(self._clock.now() - self._since, (0.0, 0.0, 0.0), self._clock.now()),
        )

    async def guests(self) -> list[GuestOnHost]:
        await self._call("guests")
        return [
            GuestOnHost(uuid=g.uuid, name=g.name, power_state=g.power_state)
            for g in self.hypervisor.guests.values() if g.defined
        ]

    async def pci_devices(self) -> list[PciDevice]:
        await self._call("pci_devices")
        return list(self.hypervisor.devices)

    async def held_devices(self) -> dict[str, tuple[str, ...]]:
        await self._call("held_devices")
        return {
            g.uuid: tuple(device.address for device in g.host_devices)
            for g in self.hypervisor.guests.values() if g.defined and g.host_devices
        }


__all__ = ["DISK", "FakeDisks", "FakeDriver", "FakeGuest", "FakeHypervisor", "Faults"]
