"""Calls about the volumes of guests."""

from __future__ import annotations

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.errors import Conflict, DeviceDetachFailed, KilonovaError, Retryable
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import hotplug, power, volumes
from kilonova.hypervisor.libvirt.calls.parts import Calls
from kilonova.hypervisor.libvirt.volume_disks import disk_of, volume_disk
from kilonova.hypervisor.libvirt.volumes import Hold
from kilonova.hypervisor.volumes import CopyState, GuestVolume, HeldVolume, VolumeCopy, VolumeUsage

EXTEND_LIMIT, EXTEND_PAUSE = 20.0, 0.1
"""Seconds in which a volume must be served with its new size, and between attempts to see it."""
COPY_BEGINS, COPY_PAUSE = 2.0, 0.05
"""Seconds in which a copy that QEMU cannot make has ended, and between looks."""


class VolumeCalls(Calls):
    """Volumes: given to a guest, taken from it, extended, copied."""

    _installation: str

    async def held_volumes(self) -> dict[str, tuple[HeldVolume, ...]]:
        return await self._connection.call(self._held_volumes)

    def _held_volumes(self, connection: libvirt.virConnect) -> dict[str, tuple[HeldVolume, ...]]:
        ours = [
            domain for domain in connection.listAllDomains()
            if domain.UUIDString() in self._ours or power.carries_mark(domain, self._installation)
        ]
        return {domain.UUIDString(): held for domain in ours if (held := volumes.held(domain))}

    def volume_device_name(self, guest: Guest, volume: GuestVolume) -> str:
        return self._describer.volume_device_name(guest, self._disks.names_for_qemu(guest.uuid), volume)

    async def attach_volume(self, guest: Guest, volume: GuestVolume) -> None:
        disk = self._describer.volume(guest, self._disks.names_for_qemu(guest.uuid), volume)
        values = await self._passphrases(guest.uuid, [volume.id] if volume.encrypted else [])
        await self._connection.call(
            lambda connection: volumes.attach(connection, guest.uuid, disk, values), uuid=guest.uuid
        )

    async def detach_volume(self, uuid: str, volume_id: str) -> None:
        how, target = await self._connection.call(
            lambda connection: volumes.hold(connection, uuid, volume_id), uuid=uuid
        )
        name = f"/dev/{target}"
        if how is Hold.NONE:
            return
        if how is Hold.COPIED:
            raise Conflict(f"Volume {volume_id} of instance {uuid} is being copied.")
        if how is Hold.STILL:
            raise DeviceDetachFailed(name, uuid, "the guest stands still.")
        if not await hotplug.taken(self._connection, self._clock, uuid, disk_of(volume_id)):
            raise hotplug.not_taken(name, uuid)

    async def extend_volume(self, uuid: str, volume_id: str, size: int) -> None:
        give_up = self._clock.monotonic() + EXTEND_LIMIT
        while not await self._connection.call(
            lambda connection: volumes.grow(connection, uuid, volume_id, size), uuid=uuid
        ):
            if self._clock.monotonic() > give_up:
                raise Retryable(f"Volume {volume_id} of instance {uuid} is not served with {size} bytes yet.")
            await self._clock.sleep(EXTEND_PAUSE)

    async def start_copy(self, uuid: str, volume_id: str, target: GuestVolume) -> None:
        """QEMU ends a copy that it cannot make without a word, for example one to a volume of another size."""
        disk = volume_disk(uuid, target, target="vda", bus="virtio", packed=False, boot_order=None)
        values = await self._passphrases(uuid, [target.id] if target.encrypted else [])
        await self._connection.call(
            lambda connection: volumes.start_copy(connection, uuid, volume_id, disk, values), uuid=uuid
        )
        give_up = self._clock.monotonic() + COPY_BEGINS
        while self._clock.monotonic() < give_up:
            found = await self.copy_state(uuid, volume_id, target)
            if found.state is CopyState.NONE:
                raise KilonovaError(
                    f"Volume {volume_id} of instance {uuid} cannot be copied to volume {target.id}.",
                    hint="both must have the same size; libvirt's log of the guest tells more",
                )
            if found.state is not CopyState.COPYING or found.done:
                return
            await self._clock.sleep(COPY_PAUSE)

    async def copy_state(self, uuid: str, volume_id: str, target: GuestVolume) -> VolumeCopy:
        return await self._connection.call(
            lambda connection: volumes.copy_state(connection, uuid, volume_id, target.source), uuid=uuid
        )

    async def pivot_volume(self, uuid: str, volume_id: str, target: GuestVolume) -> None:
        await self._connection.call(
            lambda connection: volumes.pivot(connection, uuid, volume_id, target.source), uuid=uuid
        )

    async def abort_copy(self, uuid: str, volume_id: str) -> None:
        await self._connection.call(lambda connection: volumes.abort_copy(connection, uuid, volume_id), uuid=uuid)

    async def volume_usage(self, uuid: str) -> dict[str, VolumeUsage]:
        return await self._connection.call(lambda connection: volumes.usage(connection, uuid), uuid=uuid)
