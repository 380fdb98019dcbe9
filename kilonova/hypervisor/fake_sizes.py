"""Disks of the simulated hypervisor that get another size, with the old ones kept beside them."""

from __future__ import annotations

from kilonova.domain.errors import InvalidInput, KilonovaError, NotFound
from kilonova.domain.states import GUEST_OFF
from kilonova.hypervisor.fake_state import FakeGuest, FakeHypervisor, Sizes
from kilonova.hypervisor.guest import Guest


def sizes_of(guest: Guest) -> Sizes:
    return Sizes(guest.root_gib, guest.ephemeral_gib, guest.swap_mib)


def define(record: FakeGuest, guest: Guest) -> None:
    """The hypervisor knows the guest with the shape that it is given now."""
    record.defined, record.vcpus, record.memory_mib = True, guest.vcpus, guest.memory_mib


class ResizableDisks:
    """The calls of the driver protocol that change sizes, for a driver over a `FakeHypervisor`."""

    hypervisor: FakeHypervisor

    async def _call(self, name: str) -> None:
        raise NotImplementedError

    def _guest(self, uuid: str) -> FakeGuest:
        raise NotImplementedError

    async def resize_disks(self, old: Guest, new: Guest, *, keep: str) -> None:
        await self._call("resize_disks")
        record = self._off(old.uuid)
        if not record.disks:
            raise NotFound(f"Guest {old.uuid} has no disks on host {self.hypervisor.host}.")
        before, after = record.kept.get(keep, record.sizes), sizes_of(new)
        if 0 < after.root_gib < before.root_gib or after.ephemeral_gib < before.ephemeral_gib:
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
