"""The local disks of a guest that begin without contents: those asked for, or those of the flavor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import msgspec

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidBlockDevice
from kilonova.domain.flavor import Flavor
from kilonova.shapes.asked import word
from kilonova.shapes.disks import Bus, bus_trait

SWAP = "swap"
"""What the guest_format of a swap disk is."""
FILE_SYSTEMS = ("ext2", "ext3", "ext4")
"""What an ephemeral disk may be formatted with."""
USUAL_FILE_SYSTEM = "ext4"
KIB = 1024
_BUS = word(*get_args(Bus))


class BlankDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One disk.

    Args:
        number: its place among the disks of its kind, from 0. mib: its size.
        format: its file system, or `swap`; None for an ephemeral disk of which nothing was said.
        bus: None for the bus of the guest's disks. boot_index: its place in the order of booting, None for none.
        tag: what the user calls it.
    """

    number: int
    mib: int
    format: str | None = None
    bus: Bus | None = None
    boot_index: int | None = None
    tag: str | None = None

    @property
    def is_swap(self) -> bool:
        return self.format == SWAP

    @property
    def name(self) -> str:
        """Unique in its guest: ephemeral, ephemeral1, ephemeral2, ..., swap."""
        return SWAP if self.is_swap else f"ephemeral{self.number or ''}"

    @property
    def label(self) -> str:
        """Under which the guest finds its file system."""
        return f"ephemeral{self.number}"


def blank_disks(asked: Sequence[BlockDevice], ephemeral_gib: int, swap_mib: int) -> tuple[BlankDisk, ...]:
    """The disks of a guest, in order: ephemeral ones first.

    Ephemeral disks that were asked for take the place of the flavor's, and a swap disk that was asked for that of the
    flavor's, which it never exceeds; without a size, they have that of the flavor, also after a resize.

    Args:
        ephemeral_gib, swap_mib: what the flavor has.
    """
    ephemerals = [device for device in asked if _is_blank(device) and device.guest_format != SWAP]
    swaps = [device for device in asked if _is_blank(device) and device.guest_format == SWAP]
    found = [
        _disk(number, device, (device.volume_size or ephemeral_gib) * KIB) for number, device in enumerate(ephemerals)
    ]
    found += [_disk(0, device, min(device.volume_size or swap_mib, swap_mib)) for device in swaps]
    if not ephemerals:
        found.insert(0, BlankDisk(number=0, mib=ephemeral_gib * KIB))
    if not swaps:
        found.append(BlankDisk(number=0, mib=swap_mib, format=SWAP))
    return tuple(disk for disk in found if disk.mib)


def root_bus(asked: Sequence[BlockDevice]) -> Bus | None:
    """The bus that was asked for the root disk. Raises InvalidInput."""
    return next((bus_of(device) for device in asked if device.boot_index == 0), None)


def bus_traits(asked: Sequence[BlockDevice]) -> dict[str, str]:
    """Traits of a host whose guests can have the buses that were asked for, and what asks for them."""
    buses = {bus_of(device) for device in asked if device.destination_type == "local"}
    return {bus_trait(bus): "disk_bus" for bus in buses if bus is not None}


def bus_of(device: BlockDevice) -> Bus | None:
    """The bus that was asked for a device. Raises InvalidInput."""
    return _BUS("disk_bus", device.disk_bus) if device.disk_bus else None


def check_sizes(asked: Sequence[BlockDevice], flavor: Flavor) -> None:
    """Whether a flavor has room for the disks that were asked for. Raises InvalidInput."""
    blank = [device for device in asked if _is_blank(device)]
    swaps = [device.volume_size or flavor.swap_mib for device in blank if device.guest_format == SWAP]
    ephemerals = [device.volume_size or flavor.ephemeral_gib for device in blank if device.guest_format != SWAP]
    if len(swaps) > 1:
        raise InvalidBlockDevice("More than one swap drive requested.")
    if sum(swaps) > flavor.swap_mib:
        raise InvalidBlockDevice("Swap drive requested is larger than flavor allows.")
    check_ephemerals(asked, flavor)
    if 0 in (*swaps, *ephemerals):
        raise InvalidBlockDevice("the flavor has no such disk, and no volume_size is given.")


def check_ephemerals(asked: Sequence[BlockDevice], flavor: Flavor) -> None:
    """Whether a flavor has room for the ephemeral disks that were asked for. Raises InvalidInput."""
    disks = blank_disks(asked, flavor.ephemeral_gib, flavor.swap_mib)
    if sum(disk.mib for disk in disks if not disk.is_swap) > flavor.ephemeral_gib * KIB:
        raise InvalidBlockDevice("Ephemeral disks requested are larger than the flavor allows.")


def _is_blank(device: BlockDevice) -> bool:
    return device.source_type == "blank" and device.destination_type == "local"


def _disk(number: int, device: BlockDevice, mib: int) -> BlankDisk:
    return BlankDisk(
        number=number, mib=mib, format=device.guest_format, bus=bus_of(device), boot_index=device.boot_index,
        tag=device.tag,
    )
