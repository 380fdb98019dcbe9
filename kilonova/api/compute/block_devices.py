"""The block devices of a new server, as requests name them in one of two forms. Spec: API-610, API-613, BDM-29, BDM-30.

All of this looks at nothing but its arguments; what the volume service has to say of volumes, snapshots and types of
volumes is asked elsewhere.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from kilonova.domain.block_device import ROOT, AttachState, BlockDevice, check_place, device_path
from kilonova.domain.errors import InvalidBlockDevice, InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.blank_disks import FILE_SYSTEMS, SWAP, bus_of, check_sizes
from kilonova.shapes.disks import check_bus
from kilonova.shapes.resources import is_volume_backed
from kilonova.shapes.shape import shape_of

LEGACY, CURRENT = "block_device_mapping", "block_device_mapping_v2"
_BLANK_NAME = re.compile(r"swap|ephemeral[0-9]+")
_KEPT = ("volume_size", "device_name", "delete_on_termination", "no_device")
_VOLUME_DEVICES = ("disk", "cdrom")
GIB = 1 << 30


def requested_devices(body: dict[str, Any]) -> tuple[BlockDevice, ...]:
    """The block devices that a server is asked for with, in the order in which they are named.

    Args:
        body: the server of the request, read by its schema.

    Raises:
        InvalidInput.
    """
    if body.get(LEGACY) is not None and body.get(CURRENT) is not None:
        raise InvalidInput("Using different block_device_mapping syntaxes is not allowed in the same request.")
    entries = [*map(_as_current, body.get(LEGACY) or ()), *(body.get(CURRENT) or ())]
    devices = tuple(_device(entry) for entry in entries if not entry.get("no_device"))
    check_boot_order(devices, str(body.get("imageRef") or ""))
    _check_different("device_name", [device.device_name for device in devices])
    _check_different("volume", [device.volume_id for device in devices])
    if is_volume_backed(devices):
        refuse_certificates(body)
    return devices


def refuse_certificates(body: dict[str, Any]) -> None:
    """Raises InvalidInput: the image of a server that boots from a volume is to be checked."""
    if body.get("trusted_image_certificates"):
        raise InvalidInput("The image of a server that boots from a volume cannot be checked against certificates.")


def root_image(body: dict[str, Any], devices: Sequence[BlockDevice]) -> str:
    """The image of the root disk: that of the device that is booted from, or imageRef. Raises InvalidInput: none is
    named."""
    booted = [device.image_id for device in devices if device.boot_index == 0 and device.image_id]
    found = booted[0] if booted else str(body.get("imageRef") or "")
    if not found:
        raise InvalidInput("Invalid imageRef provided.")
    return found


def check_devices(devices: Sequence[BlockDevice], image: Image, flavor: Flavor) -> None:
    """Whether the flavor allows the blank local disks that are asked for, ephemeral ones of GiB and a swap disk of MiB,
    a volume has room for the image that it boots from, and the guest can have the buses of all.

    Raises:
        InvalidInput.
    """
    check_sizes(devices, flavor)
    asked = shape_of(flavor, image).devices
    for device in devices:
        bus = bus_of(device)
        check_bus(bus, asked.firmware.machine)
        if device.boot_index == 0 and bus == "virtio" and asked.disks.cdrom_root and not device.is_volume:
            raise InvalidInput("A CD-ROM cannot be attached to the bus virtio.")
        if device.boot_index == 0 and device.is_volume and device.image_id is not None:
            check_room(device, image)


def check_room(device: BlockDevice, image: Image) -> None:
    """Whether a volume that is made from an image is big enough for it. Raises InvalidInput."""
    room, needed = (device.volume_size or 0) * GIB, max(image.virtual_size or image.size, image.min_disk * GIB)
    if needed > room:
        raise InvalidInput(f"A volume of {room} bytes is too small for image {image.id}, which needs {needed} bytes.")


def _as_current(entry: dict[str, Any]) -> dict[str, Any]:
    """A mapping of the first form in the second one. It names the root disk by its device. Raises InvalidBlockDevice.
    """
    kept: dict[str, Any] = {name: entry[name] for name in _KEPT if name in entry}
    if _BLANK_NAME.fullmatch(entry.get("virtual_name") or ""):
        form = {"guest_format": SWAP} if entry["virtual_name"] == SWAP else {}
        return {**kept, **form, "source_type": "blank", "destination_type": "local"}
    source = next((name for name in ("snapshot", "volume") if entry.get(f"{name}_id")), None)
    if source is None and not entry.get("no_device"):
        raise InvalidBlockDevice("an entry names no snapshot, no volume, and neither swap nor an ephemeral disk.")
    is_root = device_path(entry.get("device_name") or "") == ROOT
    return {
        **kept, "source_type": source, "destination_type": "volume", "boot_index": 0 if is_root else None,
        "uuid": entry.get(f"{source}_id"),
    }


def _device(entry: dict[str, Any]) -> BlockDevice:
    """Raises InvalidBlockDevice."""
    source, destination = entry["source_type"], entry.get("destination_type")
    check_place(source, destination)
    reference = entry.get("uuid") or entry.get(f"{source}_id")
    if source != "blank" and not reference:
        raise InvalidBlockDevice(f"a uuid is needed for source type {source}.")
    if source == "blank" and reference:
        raise InvalidBlockDevice("a blank device comes from nothing, so a uuid cannot be given.")
    index = entry.get("boot_index")
    device = BlockDevice(
        uuid=str(uuid.uuid4()),
        source_type=source,
        destination_type=str(destination),
        boot_index=None if index in (None, "None") or int(index) < 0 else int(index),
        image_id=reference if source == "image" else None,
        volume_id=reference if source == "volume" else None,
        snapshot_id=reference if source == "snapshot" else None,
        volume_size=entry.get("volume_size") or None,
        volume_type=entry.get("volume_type") or None,
        guest_format=entry.get("guest_format") or None,
        device_name=device_path(entry["device_name"]) if entry.get("device_name") else None,
        device_type=entry.get("device_type"),
        disk_bus=entry.get("disk_bus"),
        delete_on_termination=bool(entry.get("delete_on_termination", destination == "local")),
        tag=entry.get("tag"),
        state=AttachState.RESERVED if destination == "volume" else AttachState.ATTACHED,
    )
    if device.is_volume:
        _check_volume(device)
    else:
        _check_local(device)
    return device


def _check_volume(device: BlockDevice) -> None:
    """Raises InvalidBlockDevice."""
    if device.source_type in ("blank", "image") and device.volume_size is None:
        raise InvalidBlockDevice("a volume made at boot needs its volume_size.")
    if device.source_type == "volume" and device.volume_type is not None:
        raise InvalidBlockDevice("volume_type is for volumes made at boot.")
    if (device.device_type or "disk") not in _VOLUME_DEVICES:
        raise InvalidBlockDevice(f"a volume is a disk or a cdrom here, not a {device.device_type}.")


def _check_local(device: BlockDevice) -> None:
    """Raises InvalidBlockDevice."""
    blank = device.source_type == "blank"
    if device.volume_type is not None:
        raise InvalidBlockDevice("volume_type is for volumes made at boot, not for destination_type local.")
    if blank and device.boot_index == 0:
        raise InvalidBlockDevice("a blank device cannot be the first to be booted from.")
    if not blank and device.boot_index != 0:
        raise InvalidBlockDevice("Mapping image to local is not supported.")
    if (device.device_type or "disk") != "disk":
        raise InvalidBlockDevice(f"a local device is a disk here, not a {device.device_type}.")
    if blank and device.guest_format not in (None, SWAP, *FILE_SYSTEMS):
        known = ", ".join((SWAP, *FILE_SYSTEMS))
        raise InvalidBlockDevice(f"guest_format {device.guest_format!r} is none of {known}.")


def check_boot_order(devices: Sequence[BlockDevice], image_id: str) -> None:
    """One device is the first, and the order has no gaps. imageRef is the first device if no other is; of a volume
    that is, it does not matter. Raises InvalidBlockDevice."""
    order = sorted(device.boot_index for device in devices if device.boot_index is not None)
    if devices and not order and not image_id:
        raise InvalidBlockDevice("Boot sequence for the instance and image/block device mapping combination is not "
                                 "valid.")
    if order != list(range(len(order))):
        raise InvalidBlockDevice("the boot order has gaps or names a place twice.")
    for device in devices:
        if device.boot_index == 0 and image_id and not device.is_volume and device.image_id != image_id:
            raise InvalidBlockDevice("the boot device is another image than imageRef.")


def _check_different(what: str, values: Sequence[str | None]) -> None:
    for value in values:
        if value is not None and values.count(value) > 1:
            raise InvalidBlockDevice(f"{what} {value} is asked for twice.")
