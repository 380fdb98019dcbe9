"""Network interfaces of simulated guests."""

from __future__ import annotations

from kilonova.domain.errors import DeviceDetachFailed
from kilonova.domain.network import Vif
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake_calls import FakeCalls
from kilonova.hypervisor.guest import Guest, HostDevice


class FakeInterfaceCalls(FakeCalls):
    """Interfaces: plugged, and given to or taken from a guest."""

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
            self._need_devices(guest.uuid, *_device(vif))
            record.devnames = (*record.devnames, vif.devname)
            record.host_devices = (*record.host_devices, *_device(vif))
            self.hypervisor.keep(record)

    async def detach_interface(self, uuid: str, vif: Vif) -> None:
        await self._call("detach_interface")
        record = self._guest(uuid)
        if uuid in self.hypervisor.faults.disobedient and record.power_state is PowerState.RUNNING:
            raise DeviceDetachFailed(vif.devname, uuid, "the guest does not let go of it.")
        if vif.devname in record.devnames:
            record.devnames = tuple(d for d in record.devnames if d != vif.devname)
            record.host_devices = tuple(d for d in record.host_devices if d not in _device(vif))
            self.hypervisor.keep(record)


def _device(vif: Vif) -> tuple[HostDevice, ...]:
    return (HostDevice(vif.address),) if vif.address else ()
