"""Volumes of simulated guests."""

from __future__ import annotations

import string
from collections.abc import Iterator

import msgspec

from kilonova.domain.errors import (
    Conflict,
    DeviceDetachFailed,
    KilonovaError,
    NotFound,
    Retryable,
    TooManyDisks,
    TryElsewhere,
)
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake_calls import ON, FakeCalls
from kilonova.hypervisor.fake_state import FakeGuest, FakeHypervisor, FakeVolume
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.volumes import CopyState, GuestVolume, HeldVolume, VolumeCopy, VolumeSource, VolumeUsage


class FakeVolumeCalls(FakeCalls):
    """Volumes: given to a guest, taken from it, extended, copied."""

    async def held_volumes(self) -> dict[str, tuple[HeldVolume, ...]]:
        await self._call("held_volumes")
        return {
            guest.uuid: tuple(sorted((
                HeldVolume(id=id_, device_name=one.device_name, running=one.running, defined=one.defined)
                for id_, one in guest.volumes.items()
            ), key=lambda one: one.device_name))
            for guest in self.hypervisor.guests.values() if guest.defined and guest.volumes
        }

    def volume_device_name(self, guest: Guest, volume: GuestVolume) -> str:
        others = msgspec.structs.replace(guest, volumes=tuple(one for one in guest.volumes if one.id != volume.id))
        return next(_free_names(guest, {one.device_name for one in defined_volumes(self.hypervisor, others).values()}))

    async def attach_volume(self, guest: Guest, volume: GuestVolume) -> None:
        await self._call("attach_volume")
        record = self._existing(guest.uuid)
        if "attach_volume" in self.hypervisor.faults.lie or not record.defined:
            return
        name = volume.device_name or self.volume_device_name(guest, volume)
        had = record.volumes.get(volume.id)
        on = record.power_state in ON
        if had is not None and had.defined is not None and (had.running is not None or not on):
            return
        if any(one.device_name == name for id_, one in record.volumes.items() if id_ != volume.id):
            raise KilonovaError(f"Instance {guest.uuid} has another disk that is called {name}.")
        if on:
            need_volume(self.hypervisor, guest.uuid, volume)
        plugged = FakeVolume(
            device_name=name, running=volume.source if on else None, defined=volume.source,
            multiattach=volume.multiattach, size=size_of(self.hypervisor, volume.source) if on else 0,
        )
        self._keep(record, volume.id, plugged)

    async def detach_volume(self, uuid: str, volume_id: str) -> None:
        await self._call("detach_volume")
        record = self._guest(uuid)
        found = record.volumes.get(volume_id)
        if found is None or "detach_volume" in self.hypervisor.faults.lie:
            return
        if found.target is not None:
            raise Conflict(f"Volume {volume_id} of instance {uuid} is being copied.")
        if record.power_state is PowerState.PAUSED and found.running is not None:
            raise DeviceDetachFailed(found.device_name, uuid, "the guest stands still.")
        if uuid in self.hypervisor.faults.disobedient and found.running is not None:
            raise DeviceDetachFailed(found.device_name, uuid, "the guest does not let go of it.")
        self._keep(record, volume_id, None)

    async def extend_volume(self, uuid: str, volume_id: str, size: int) -> None:
        await self._call("extend_volume")
        record = self._guest(uuid)
        found = record.volumes.get(volume_id)
        if found is None or found.running is None or "extend_volume" in self.hypervisor.faults.lie:
            return
        now = size_of(self.hypervisor, found.running)
        if self.hypervisor.served is not None and now < size:
            raise Retryable(f"Volume {volume_id} is not served with {size} bytes yet.")
        self._keep(record, volume_id, msgspec.structs.replace(found, size=now))

    async def start_copy(self, uuid: str, volume_id: str, target: GuestVolume) -> None:
        await self._call("start_copy")
        record, found = self._held(uuid, volume_id)
        if target.source in (found.running, found.target) or "start_copy" in self.hypervisor.faults.lie:
            return
        if found.running is None:
            raise Conflict(f"Instance {uuid} does not run.")
        if found.target is not None:
            raise Conflict(f"Volume {volume_id} of instance {uuid} is being copied to another volume.")
        if size_of(self.hypervisor, target.source) != found.size:
            raise KilonovaError(f"Volume {target.id} has not the size of volume {volume_id}.")
        began = msgspec.structs.replace(found, target=target.source, since=self._clock.now())
        self._keep(record, volume_id, began)

    async def copy_state(self, uuid: str, volume_id: str, target: GuestVolume) -> VolumeCopy:
        await self._call("copy_state")
        return self._state(self._held(uuid, volume_id)[1], target)

    def _state(self, found: FakeVolume, target: GuestVolume) -> VolumeCopy:
        if target.source in (found.running, found.defined):
            return VolumeCopy(state=CopyState.DONE)
        if found.target != target.source:
            return VolumeCopy(state=CopyState.NONE)
        needed = self.hypervisor.faults.copying
        part = min(1.0, (self._clock.now() - found.since) / needed) if needed else 1.0
        total = found.size or 1 << 30
        state = CopyState.READY if part == 1.0 else CopyState.COPYING
        return VolumeCopy(state=state, done=int(part * total), total=total)

    async def pivot_volume(self, uuid: str, volume_id: str, target: GuestVolume) -> None:
        await self._call("pivot_volume")
        record, found = self._held(uuid, volume_id)
        state = self._state(found, target).state
        if state is CopyState.DONE or "pivot_volume" in self.hypervisor.faults.lie:
            return
        if state is not CopyState.READY:
            raise Conflict(f"The copy of volume {volume_id} of instance {uuid} is not ready: {state}.")
        self._keep(record, volume_id, msgspec.structs.replace(
            found, running=target.source, defined=target.source, target=None, since=0.0,
        ))

    async def abort_copy(self, uuid: str, volume_id: str) -> None:
        await self._call("abort_copy")
        record = self._guest(uuid)
        found = record.volumes.get(volume_id)
        if found is not None and found.target is not None:
            self._keep(record, volume_id, msgspec.structs.replace(found, target=None, since=0.0))

    async def volume_usage(self, uuid: str) -> dict[str, VolumeUsage]:
        await self._call("volume_usage")
        volumes = self._guest(uuid).volumes
        return {id_: one.usage for id_, one in volumes.items() if one.running is not None}

    def use_volume(self, uuid: str, volume_id: str, usage: VolumeUsage) -> None:
        """The guest has done this with a volume by now."""
        record, found = self._held(uuid, volume_id)
        self._keep(record, volume_id, msgspec.structs.replace(found, usage=usage))

    def _held(self, uuid: str, volume_id: str) -> tuple[FakeGuest, FakeVolume]:
        record = self._guest(uuid)
        if volume_id not in record.volumes:
            raise NotFound(f"Instance {uuid} has no volume {volume_id}.")
        return record, record.volumes[volume_id]

    def _keep(self, record: FakeGuest, volume_id: str, volume: FakeVolume | None) -> None:
        others = {id_: one for id_, one in record.volumes.items() if id_ != volume_id}
        record.volumes = others if volume is None else record.volumes | {volume_id: volume}
        self.hypervisor.keep(record)


def defined_volumes(hypervisor: FakeHypervisor, guest: Guest) -> dict[str, FakeVolume]:
    """The volumes of a guest as it is described. Raises TooManyDisks: more than there are names."""
    free = _free_names(guest, {one.device_name for one in guest.volumes})
    known = hypervisor.guests.get(guest.uuid)
    backing = {one.defined: one.backing for one in known.volumes.values()} if known is not None else {}
    return {
        one.id: FakeVolume(
            device_name=one.device_name or next(free), running=None, defined=one.source,
            multiattach=one.multiattach, size=size_of(hypervisor, one.source), backing=backing.get(one.source, ()),
        )
        for one in guest.volumes
    }


def _free_names(guest: Guest, used: set[str]) -> Iterator[str]:
    """Names that neither a local disk of the guest nor another volume has."""
    names = [f"/dev/vd{letter}" for letter in string.ascii_lowercase if f"/dev/vd{letter}" not in used]
    yield from names[(guest.image is not None) + len(guest.blank_disks):]
    raise TooManyDisks(f"Instance {guest.uuid} has no name left for one more disk.")


def need_volume(hypervisor: FakeHypervisor, uuid: str, volume: GuestVolume) -> None:
    """A volume is served, and no other guest that is on writes to it, unless it is made for that."""
    if hypervisor.served is not None and hypervisor.served(volume.source) is None:
        raise TryElsewhere(f"Volume {volume.id} is not served to host {hypervisor.host}.")
    for other in hypervisor.guests.values():
        held = other.volumes.get(volume.id)
        if other.uuid == uuid or held is None or held.running is None:
            continue
        if not (volume.multiattach and held.multiattach):
            raise TryElsewhere(f"Volume {volume.id} is used by guest {other.uuid}.")


def size_of(hypervisor: FakeHypervisor, source: VolumeSource) -> int:
    """Bytes; 0 if nobody knows."""
    return (hypervisor.served(source) or 0) if hypervisor.served is not None else 0
