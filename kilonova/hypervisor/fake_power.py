"""Starting and stopping simulated guests."""

from __future__ import annotations

from kilonova.domain.errors import KilonovaError, NotFound
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake_calls import ON, FakeCalls, plugged
from kilonova.hypervisor.fake_state import FakeGuest
from kilonova.hypervisor.fake_volumes import defined_volumes, need_volume
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.guest_shape import checked_shape
from kilonova.hypervisor.shares import lacks_share


class FakePowerCalls(FakeCalls):
    """Power: spawned, paused, suspended, rebooted, shut down, destroyed."""

    async def power_state(self, uuid: str) -> PowerState:
        await self._call("power_state")
        guest = self._guest(uuid)
        return guest.power_state if guest.defined else PowerState.NOSTATE

    async def absent_shares(self, directories: tuple[str, ...]) -> tuple[str, ...]:
        await self._call("absent_shares")
        return tuple(one for one in directories if one in self.hypervisor.faults.absent)

    def _need_shares(self, guest: Guest) -> None:
        for share in guest.shares:
            if share.directory in self.hypervisor.faults.absent:
                raise lacks_share(self.hypervisor.host, share)

    def _start(self, guest: Guest, state: PowerState = PowerState.RUNNING) -> None:
        """Start a guest from the disks that it is to boot from; one that runs goes on as it is."""
        record = self._existing(guest.uuid)
        if guest.rescue is not None and record.rescue is None:
            raise NotFound(f"Guest {guest.uuid} has no rescue disk on host {self.hypervisor.host}.")
        if not record.defined or record.power_state not in ON:
            self._need_shares(guest)
            self._need_devices(guest.uuid, *guest.host_devices, *guest.port_devices)
            for volume in guest.volumes:
                need_volume(self.hypervisor, guest.uuid, volume)
            define(record, guest)
            record.volumes = defined_volumes(self.hypervisor, guest)
            record.rescued = guest.rescue is not None
            record.rescue = guest.rescue.id if guest.rescue is not None else None
        self._power(record, state)

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
        if guest.power_state is PowerState.SUSPENDED:
            guest.volumes = plugged(guest.volumes)
        guest.power_state = PowerState.RUNNING
        self.hypervisor.keep(guest)

    async def destroy(self, uuid: str) -> None:
        await self._call("destroy")
        record = self._guest(uuid)
        record.defined, record.power_state, record.volumes = False, PowerState.NOSTATE, {}
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
        self._start(guest)
        return True

    async def hard_reboot(self, guest: Guest) -> None:
        await self._call("hard_reboot")
        record = self._existing(guest.uuid)
        self._need_shares(guest)
        self._power(record, PowerState.SHUTDOWN)
        self._start(guest)


def define(record: FakeGuest, guest: Guest) -> None:
    """The hypervisor knows the guest with the shape that it is given now. Raises KilonovaError, InvalidInput."""
    checked_shape(guest)
    record.layout, record.shares, record.host_devices = (
        guest.layout, guest.shares, (*guest.host_devices, *guest.port_devices)
    )
    record.defined, record.vcpus, record.memory_mib = True, guest.vcpus, guest.memory_mib
