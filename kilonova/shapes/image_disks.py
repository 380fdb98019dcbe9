"""The disks of an image without data: what a server that is made of it gets, mostly copies of snapshots of volumes.

They are a property of the image, as JSON. Users can write it, so it is read as carefully as a request. Spec: EMG-30.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import msgspec

from kilonova.domain.block_device import AttachState, BlockDevice, check_place
from kilonova.domain.errors import InvalidBlockDevice
from kilonova.shapes.asked import TRUE

MAPPING, SECOND_FORM, ROOT = "block_device_mapping", "bdm_v2", "root_device_name"
"""Properties of an image: its disks, in which form they are, and which name the first has."""
_DEFAULT_ROOT = "/dev/vda"


class ImageDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One disk, with the names that block devices have in requests. volume_size: as of `BlockDevice`."""

    source_type: str
    destination_type: str
    boot_index: int | None = None
    snapshot_id: str | None = None
    volume_size: int | None = None
    volume_type: str | None = None
    guest_format: str | None = None
    device_name: str | None = None
    device_type: str | None = None
    disk_bus: str | None = None
    delete_on_termination: bool | None = False
    tag: str | None = None
    volume_id: str | None = None
    image_id: str | None = None
    no_device: bool | None = None


def disk_of(device: BlockDevice, *, snapshot_id: str | None = None, size: int | None = None) -> ImageDisk:
    """A disk of a server as its image has it.

    Args:
        snapshot_id: of a volume; None for a local disk, which is made anew. size: GiB, of the snapshot.
    """
    taken = snapshot_id is not None
    return ImageDisk(
        source_type="snapshot" if taken else device.source_type, destination_type=device.destination_type,
        boot_index=device.boot_index, snapshot_id=snapshot_id, volume_size=size if taken else device.volume_size,
        guest_format=device.guest_format, device_name=device.device_name, device_type=device.device_type,
        disk_bus=device.disk_bus, delete_on_termination=device.delete_on_termination, tag=device.tag,
    )


def properties_of(disks: Sequence[ImageDisk]) -> dict[str, str]:
    """What an image with these disks says of them."""
    root = next((disk.device_name for disk in disks if disk.boot_index == 0), None)
    return {
        MAPPING: msgspec.json.encode(disks).decode(), SECOND_FORM: "True", ROOT: root or _DEFAULT_ROOT,
    }


def disks_in(properties: Mapping[str, str]) -> list[BlockDevice]:
    """The block devices that an image asks for.

    Raises:
        InvalidBlockDevice: the property cannot be read.
    """
    if properties.get(SECOND_FORM, "").strip().lower() not in TRUE or not properties.get(MAPPING):
        return []
    try:
        disks = msgspec.json.decode(properties[MAPPING], type=list[ImageDisk])
    except msgspec.DecodeError as error:
        raise InvalidBlockDevice(f"the image has a {MAPPING} that cannot be read: {error}") from error
    return [_device(disk) for disk in disks if not disk.no_device]


def root_snapshot(properties: Mapping[str, str]) -> str | None:
    """The snapshot of a volume of which the first disk is a copy, None if it is something else.

    Raises:
        InvalidBlockDevice: the property cannot be read.
    """
    root = next((disk for disk in disks_in(properties) if disk.boot_index == 0), None)
    return root.snapshot_id if root is not None and root.source_type == "snapshot" else None


def _device(disk: ImageDisk) -> BlockDevice:
    check_place(disk.source_type, disk.destination_type)
    wanted = {"snapshot": disk.snapshot_id, "volume": disk.volume_id, "image": disk.image_id, "blank": ""}
    if wanted.get(disk.source_type) is None:
        raise InvalidBlockDevice(f"the image has a disk from {disk.source_type!r}, and does not say from which.")
    is_volume = disk.destination_type == "volume"
    return BlockDevice(
        uuid=str(uuid.uuid4()), source_type=disk.source_type, destination_type=disk.destination_type,
        boot_index=disk.boot_index, snapshot_id=disk.snapshot_id, volume_id=disk.volume_id, image_id=disk.image_id,
        volume_size=disk.volume_size, volume_type=disk.volume_type, guest_format=disk.guest_format,
        device_name=disk.device_name, device_type=disk.device_type, disk_bus=disk.disk_bus,
        delete_on_termination=bool(disk.delete_on_termination), tag=disk.tag,
        state=AttachState.RESERVED if is_volume else AttachState.ATTACHED,
    )
