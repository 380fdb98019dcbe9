"""Calls about the network interfaces of guests."""

from __future__ import annotations

from pathlib import Path

from kilonova.domain.errors import DeviceDetachFailed, TryElsewhere
from kilonova.domain.network import Vif
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import interfaces
from kilonova.hypervisor.libvirt.calls.parts import Calls

NETWORK_DEVICES, PCI_DEVICES = Path("/sys/class/net"), Path("/sys/bus/pci/devices")
DETACH_ATTEMPTS, DETACH_WAIT, DETACH_PAUSE = 8, 20.0, 0.1
"""How often a guest is asked to let go of a device, and seconds: for each attempt, and between looks."""


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
        """A guest that is still starting does not hear that it is to let go of a device: it is told again."""
        name = interfaces.name_of(vif)
        for _ in range(DETACH_ATTEMPTS):
            there = await self._connection.call(
                lambda connection: interfaces.ask_to_let_go(connection, uuid, name), uuid=uuid
            )
            give_up = self._clock.monotonic() + DETACH_WAIT
            while there and self._clock.monotonic() < give_up:
                await self._clock.sleep(DETACH_PAUSE)
                there = await self._connection.call(
                    lambda connection: interfaces.has(connection, uuid, name), uuid=uuid
                )
            if not there:
                await self._connection.call(
                    lambda connection: interfaces.forget(connection, uuid, name), uuid=uuid
                )
                return
        raise DeviceDetachFailed(
            vif.devname, uuid, f"the guest did not let go of it in {DETACH_ATTEMPTS} attempts of {DETACH_WAIT:.0f} s."
        )


def _need_source(vif: Vif) -> None:
    if vif.is_device:
        if not (PCI_DEVICES / vif.address).exists():
            raise TryElsewhere(f"PCI device {vif.address} of port {vif.id} does not exist on this host.")
    elif not (NETWORK_DEVICES / vif.bridge).exists():
        raise TryElsewhere(f"Bridge {vif.bridge!r} of port {vif.id} does not exist on this host.")
