"""Calls about the disks of guests and copies of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from kilonova.domain.errors import KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor.guest import BesideDisks, Guest
from kilonova.hypervisor.libvirt.calls.parts import Calls
from kilonova.hypervisor.libvirt.description import root_device_name
from kilonova.hypervisor.libvirt.freeze import Freezer
from kilonova.hypervisor.libvirt.properties import hardware
from kilonova.hypervisor.libvirt.snapshots import Snapshots
from kilonova.services.secrets import Purpose
from kilonova.shapes.quiesce import Quiesce


class DiskCalls(Calls):
    """Disks: made, exchanged, resized, rescued, copied, removed."""

    _snapshots: Snapshots
    _freezer: Freezer

    async def disks(self) -> list[str]:
        return await self._disks.owners()

    async def create_disks(self, guest: Guest) -> None:
        await self._disks.create(guest, key=await self._make_secrets(guest))

    async def cache_image(self, image: Image) -> bool:
        return await self._disks.cache_image(image)

    async def age_cache(self, *, minimum_age: float) -> list[str]:
        return await self._disks.age_cache(now=self._clock.now(), minimum_age=minimum_age)

    async def _make_secrets(self, guest: Guest) -> str | None:
        """What the guest's TPM and its disks are encrypted with. Returns the key of the disks, if they are."""
        devices = hardware(guest.properties, guest.extra_specs).devices
        if devices.tpm is not None:
            owner = guest.user_id if devices.tpm.security == "user" else ""
            await self._secrets.make(guest.uuid, Purpose.TPM, owner)
        if devices.disks.encryption is None:
            return None
        await self._secrets.make(guest.uuid, Purpose.DISKS, guest.user_id)
        return await self._secrets.value(guest.uuid, Purpose.DISKS)

    def root_device_name(self, guest: Guest) -> str:
        return root_device_name(guest)

    async def delete_disks(self, uuid: str) -> None:
        """Never those of a guest that still exists. Raises KilonovaError for one."""
        self._disks.of(uuid)  # nothing else looks at what may not be a UUID
        await self._require_no_guest(uuid)
        await self._disks.delete(uuid)

    async def prepare_disks(self, guest: Guest, *, keep_ephemeral: bool) -> None:
        key = await self._make_secrets(guest)
        await self._disks.prepare(guest, keep_ephemeral=keep_ephemeral, key=key)

    async def replace_disks(self, guest: Guest) -> None:
        """Never those of a guest that still exists. Raises KilonovaError for one."""
        await self._require_no_guest(guest.uuid)
        await self._disks.replace(guest, key=await self._make_secrets(guest))

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
        await self._drop_rescue(uuid)

    async def beside_disks(self) -> list[BesideDisks]:
        return await self._disks.beside()

    async def tidy_disks(self, uuid: str, *, kept: bool) -> None:
        await self._drop_rescue(uuid)
        await self._disks.tidy(uuid, kept=kept)

    async def resize_disks(self, old: Guest, new: Guest, *, keep: str) -> None:
        await self._require_off(old.uuid)
        await self._disks.resize(old, new, keep=keep, key=await self._make_secrets(new))

    async def revert_disks(self, old: Guest, *, keep: str) -> None:
        await self._require_off(old.uuid)
        await self._disks.revert(old, keep=keep)

    async def drop_kept_disks(self, uuid: str, *, keep: str) -> None:
        await self._disks.drop_kept(uuid, keep=keep)

    async def _require_off(self, uuid: str) -> None:
        """Raises KilonovaError for a guest that uses its disks."""
        if await self.power_state(uuid) not in GUEST_OFF:
            raise KilonovaError(f"The guest of instance {uuid} still uses its disks.", hint="power it off first")

    async def snapshot(self, uuid: str, image_id: str, *, quiesce: Quiesce = Quiesce.NO) -> None:
        await self._snapshots.make(self._connection, uuid, image_id, quiesce)

    async def freeze(self, uuid: str, *, quiesce: Quiesce) -> None:
        if await self.power_state(uuid) is PowerState.RUNNING:
            await self._freezer.freeze(self._connection, uuid, quiesce)

    async def thaw(self, uuid: str) -> None:
        await self._freezer.thaw(self._connection, uuid)

    def snapshot_data(self, uuid: str, image_id: str) -> AsyncIterator[bytes]:
        return self._snapshots.data(uuid, image_id)

    async def discard_snapshot(self, uuid: str, image_id: str) -> None:
        await self._snapshots.discard(self._connection, uuid, image_id)
