"""Disks of the simulated hypervisor and copies of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from kilonova.domain.errors import InvalidInput, KilonovaError, NotFound, NotSupported
from kilonova.domain.image import Image
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor.fake_calls import ON, FakeCalls
from kilonova.hypervisor.fake_state import FakeDisks, FakeGuest, Sizes
from kilonova.hypervisor.guest import BesideDisks, Guest
from kilonova.imaging import qcow2
from kilonova.shapes.quiesce import REQUIRED, Quiesce

DISK = qcow2.empty(1 << 20)
"""What every guest's disk holds."""


class FakeDiskCalls(FakeCalls):
    """Disks: made, exchanged, resized, rescued, copied, removed."""

    async def disks(self) -> list[str]:
        return [g.uuid for g in self.hypervisor.guests.values() if g.disks]

    async def create_disks(self, guest: Guest) -> None:
        await self._call("create_disks")
        record = self._guest(guest.uuid)
        if not record.disks:
            self._use(guest.image, guest.trusted_certs)
            record.uses = _made_of(guest, 1)
            record.sizes = sizes_of(guest)
        record.disks, record.name = True, guest.name
        self.hypervisor.keep(record)

    async def cache_image(self, image: Image) -> bool:
        await self._call("cache_image")
        was_there = image.id in self.hypervisor.images
        self._use(image, ())
        return not was_there

    async def age_cache(self, *, minimum_age: float) -> list[str]:
        await self._call("age_cache")
        used: set[str] = set()
        for guest in self.hypervisor.guests.values():
            used |= {disks.image for disks in (guest.uses, guest.prepared, guest.old) if disks is not None}
            used |= {guest.rescue} if guest.rescue is not None else set()
        oldest = self._clock.now() - minimum_age
        unused = [id_ for id_, at in self.hypervisor.images.items() if id_ not in used and at <= oldest]
        for id_ in unused:
            del self.hypervisor.images[id_]
        return unused

    def _use(self, image: Image | None, trusted: Sequence[str]) -> None:
        if image is None:
            return
        rules = self.hypervisor.signatures
        if rules is not None and rules.demanded(image, trusted) and image.id in self.hypervisor.faults.forged:
            raise InvalidInput(f"Signature verification of image {image.id} failed: its data is not what was signed.")
        self.hypervisor.images[image.id] = self._clock.now()

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
        self._use(guest.image, guest.trusted_certs)
        record.disks = True
        record.prepared = _made_of(guest, record.uses.ephemeral + (not keep_ephemeral))
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
        self._use(guest.rescue, guest.trusted_certs)
        record = self._guest(guest.uuid)
        record.disks, record.rescue = True, guest.rescue.id
        self.hypervisor.keep(record)

    async def drop_rescue(self, uuid: str) -> None:
        await self._call("drop_rescue")
        record = self._guest(uuid)
        if not _runs_from_rescue(record):
            record.rescue = None
        self.hypervisor.keep(record)

    async def beside_disks(self) -> list[BesideDisks]:
        await self._call("beside_disks")
        found = [
            BesideDisks(uuid=g.uuid, rescue=g.rescue is not None, kept=bool(g.kept), snapshots=bool(g.snapshots),
                        put_aside=g.old is not None or g.prepared is not None)
            for g in self.hypervisor.guests.values()
        ]
        return [one for one in found if one != BesideDisks(uuid=one.uuid)]

    async def tidy_disks(self, uuid: str, *, kept: bool) -> None:
        await self._call("tidy_disks")
        record = self._guest(uuid)
        record.old = record.prepared = None
        record.snapshots = ()
        if not _runs_from_rescue(record):
            record.rescue = None
        if kept:
            record.kept = {}
        self.hypervisor.keep(record)

    async def resize_disks(self, old: Guest, new: Guest, *, keep: str) -> None:
        await self._call("resize_disks")
        record = self._off(old.uuid)
        if not record.disks:
            raise NotFound(f"Guest {old.uuid} has no disks on host {self.hypervisor.host}.")
        before, after = record.kept.get(keep, record.sizes), sizes_of(new)
        smaller = len(after.ephemerals) < len(before.ephemerals) or any(
            new < had for new, had in zip(after.ephemerals, before.ephemerals, strict=False))
        if 0 < after.root_gib < before.root_gib or smaller or sum(after.ephemerals) > new.ephemeral_gib:
            raise InvalidInput(f"Resize error: the disks of guest {old.uuid} cannot be made smaller.")
        record.sizes, record.kept = after, {keep: before}
        self.hypervisor.keep(record)

    async def revert_disks(self, old: Guest, *, keep: str) -> None:
        await self._call("revert_disks")
        record = self._off(old.uuid)
        if keep in record.kept:
            record.sizes, record.kept = record.kept[keep], {k: v for k, v in record.kept.items() if k != keep}
            self.hypervisor.keep(record)

    async def drop_kept_disks(self, uuid: str, *, keep: str) -> None:
        await self._call("drop_kept_disks")
        record = self._guest(uuid)
        record.kept = {name: sizes for name, sizes in record.kept.items() if name != keep}
        self.hypervisor.keep(record)

    def _off(self, uuid: str) -> FakeGuest:
        record = self._guest(uuid)
        if record.defined and record.power_state not in GUEST_OFF:
            raise KilonovaError(f"Guest {uuid} still uses its disks.")
        return record

    async def snapshot(self, uuid: str, image_id: str, *, quiesce: Quiesce = Quiesce.NO) -> None:
        await self._call("snapshot")
        if image_id in self._existing(uuid).snapshots:
            return
        frozen = await self._freeze(uuid, quiesce)
        try:
            guest = self._existing(uuid)
            guest.snapshots = (*guest.snapshots, image_id)
            self.hypervisor.keep(guest)
        finally:
            if frozen:
                await self._thaw(uuid)

    async def freeze(self, uuid: str, *, quiesce: Quiesce) -> None:
        await self._freeze(uuid, quiesce)

    async def thaw(self, uuid: str) -> None:
        await self._thaw(uuid)

    async def _freeze(self, uuid: str, quiesce: Quiesce) -> bool:
        """Returns False for a guest that is off, or need not be frozen and cannot."""
        guest = self._existing(uuid)
        if quiesce is Quiesce.NO or guest.power_state not in ON:
            return False
        if uuid not in self.hypervisor.agents or guest.power_state is not PowerState.RUNNING:
            if quiesce is Quiesce.MUST:
                raise NotSupported(f"Guest {uuid} cannot be frozen, and its image demands that ({REQUIRED}).")
            return False
        guest.frozen, guest.freezes = True, guest.freezes + 1
        self.hypervisor.keep(guest)
        await self._call("freeze")
        return True

    async def _thaw(self, uuid: str) -> None:
        guest = self._guest(uuid)
        if guest.frozen:
            await self._call("thaw")
            guest = self._guest(uuid)
            guest.frozen = False
            self.hypervisor.keep(guest)

    async def snapshot_data(self, uuid: str, image_id: str) -> AsyncIterator[bytes]:
        await self._call("snapshot_data")
        if image_id not in self._guest(uuid).snapshots:
            raise NotFound(f"Guest {uuid} has no snapshot {image_id} on host {self.hypervisor.host}.")
        yield DISK

    async def discard_snapshot(self, uuid: str, image_id: str) -> None:
        await self._call("discard_snapshot")
        await self._thaw(uuid)
        guest = self._guest(uuid)
        guest.snapshots = tuple(other for other in guest.snapshots if other != image_id)
        self.hypervisor.keep(guest)


def _runs_from_rescue(guest: FakeGuest) -> bool:
    return guest.rescued and guest.power_state in ON


def sizes_of(guest: Guest) -> Sizes:
    blank = guest.blank_disks
    return Sizes(
        guest.root_gib, tuple(disk.mib >> 10 for disk in blank if not disk.is_swap),
        sum(disk.mib for disk in blank if disk.is_swap),
    )


def _made_of(guest: Guest, ephemeral: int) -> FakeDisks:
    base = guest.image.properties.get("base_image_ref", "") if guest.image is not None else ""
    return FakeDisks(_image_of(guest), ephemeral, base)


def _image_of(guest: Guest) -> str:
    return guest.image.id if guest.image is not None else ""
