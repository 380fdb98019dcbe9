"""Calls about the network interfaces of guests."""

from __future__ import annotations

from pathlib import Path

from kilonova.domain.errors import TryElsewhere
from kilonova.domain.network import Vif
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import hotplug, interfaces
from kilonova.hypervisor.libvirt.calls.parts import Calls

NETWORK_DEVICES, PCI_DEVICES = Path("/sys/class/net"), Path("/sys/bus/pci/devices")


class InterfaceCalls(Calls):
    """Interfaces: plugged, and given to or taken from a guest."""

    async def plug(self, guest: Guest) -> None:
        """Make sure that bridges and PCI devices are there; libvirt makes the tap devices when the guest starts."""
        for vif in guest.vifs:
            _need_source(vif)

    async def unplug(self, uuid: str, vif_devnames: tuple[str, ...]) -> None:
        """Nothing: a tap device ends with the QEMU that holds it."""

    async def attach_interface(self, guest: Guest, vif: Vif) -> None:
        _need_source(vif)
        device = self._describer.interface(guest, vif)
        await self._connection.call(
            lambda connection: interfaces.attach(connection, guest.uuid, device), uuid=guest.uuid
        )

    async def detach_interface(self, uuid: str, vif: Vif) -> None:
        if not await hotplug.taken(self._connection, self._clock, uuid, interfaces.interface_of(vif)):
            raise hotplug.not_taken(vif.devname, uuid)


def _need_source(vif: Vif) -> None:
    if vif.is_device:
        if not (PCI_DEVICES / vif.address).exists():
            raise TryElsewhere(f"PCI device {vif.address} of port {vif.id} does not exist on this host.")
    elif not (NETWORK_DEVICES / vif.bridge).exists():
        raise TryElsewhere(f"Bridge {vif.bridge!r} of port {vif.id} does not exist on this host.")
