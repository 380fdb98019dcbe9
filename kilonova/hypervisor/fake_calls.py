"""What all calls of the simulated hypervisor work with."""

from __future__ import annotations

import msgspec

from kilonova.domain.clock import Clock
from kilonova.domain.errors import NotFound, TryElsewhere
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake_state import FakeGuest, FakeHypervisor, FakeVolume
from kilonova.hypervisor.guest import HostDevice

ON = (PowerState.RUNNING, PowerState.PAUSED)
HANGING = 1.0
"""Seconds after which a call that hangs looks whether it still does."""


class FakeCalls:
    """Reading and keeping the records of guests."""

    hypervisor: FakeHypervisor
    _clock: Clock

    async def _call(self, name: str) -> None:
        """Every call takes its time and may have been told to fail."""
        faults = self.hypervisor.faults
        if faults.latency:
            await self._clock.sleep(faults.latency)
        while name in faults.hang:
            await self._clock.sleep(HANGING)
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

    def _need_devices(self, uuid: str, *devices: HostDevice) -> None:
        """A device is there, and no other guest that is on has it."""
        there = {device.address for device in self.hypervisor.devices}
        on = [one for one in self.hypervisor.guests.values() if one.power_state in ON and one.uuid != uuid]
        for device in devices:
            user = next((other.uuid for other in on if device in other.host_devices), None)
            if device.address not in there or user is not None:
                why = f"is used by guest {user}" if user is not None else "does not exist"
                raise TryElsewhere(f"PCI device {device.address} of host {self.hypervisor.host} {why}.")

    def _power(self, guest: FakeGuest, state: PowerState) -> None:
        if state in ON and guest.power_state not in ON:
            guest.starts += 1
        if (state in ON) != (guest.power_state in ON):
            guest.volumes = plugged(guest.volumes) if state in ON else unplugged(guest.volumes)
        guest.power_state = state
        guest.frozen = guest.frozen and state in ON
        self.hypervisor.keep(guest)


def plugged(volumes: dict[str, FakeVolume]) -> dict[str, FakeVolume]:
    """Volumes of a guest that starts: those of its definition."""
    return {
        id_: msgspec.structs.replace(one, running=one.defined)
        for id_, one in volumes.items() if one.defined is not None
    }


def unplugged(volumes: dict[str, FakeVolume]) -> dict[str, FakeVolume]:
    """The same of one that ends. Copies and merges end with it."""
    return {
        id_: FakeVolume(
            device_name=one.device_name, running=None, defined=one.defined, multiattach=one.multiattach, size=one.size,
            backing=one.backing,
        )
        for id_, one in volumes.items() if one.defined is not None
    }
