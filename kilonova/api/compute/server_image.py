"""The image, flavor and block devices of a new server, and whether they fit each other. Spec: API-610, API-613."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.policy import Audience, Rule
from kilonova.db import flavors
from kilonova.domain.errors import FlavorNotFound, Forbidden, ImageNotFound, InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import BlockDevice
from kilonova.shapes.asked import Asked
from kilonova.shapes.blank_disks import FILE_SYSTEMS, SWAP, bus_of, check_sizes
from kilonova.shapes.disks import check_bus
from kilonova.shapes.kernel import PLAIN, kernel_of
from kilonova.shapes.pci_requests import read_requests
from kilonova.shapes.resources import granular_groups
from kilonova.shapes.shape import shape_of

GIB = 1 << 30
ZERO_DISK = Rule("servers:create:zero_disk_flavor", Audience.ADMIN)
ATTACH_VOLUME = Rule("servers:create:attach_volume", Audience.MEMBER)


async def find_flavor(call: Call, reference: str | int) -> Flavor:
    """The flavor an id or link names, if the caller may use it. Raises InvalidInput."""
    flavor_id = urlsplit(str(reference)).path.rstrip("/").rpartition("/")[2] or str(reference)
    project_id, is_admin = call.context.project_id, call.context.is_admin

    def look_up(conn: sa.Connection) -> Flavor:
        flavor = flavors.get(conn, flavor_id)
        hidden = not flavor.is_public and not is_admin
        if flavor.disabled or (hidden and project_id not in flavors.projects_with_access(conn, flavor_id)):
            raise FlavorNotFound(flavor_id)
        return flavor

    try:
        return await call.cloud.cells.api.read(look_up)
    except FlavorNotFound as error:
        raise InvalidInput(error.message) from error


async def find_image(call: Call, image_id: str) -> Image:
    """The image to boot from. Raises InvalidInput."""
    try:
        image = await call.cloud.images.show(call.context, image_id)
    except ImageNotFound as error:
        raise InvalidInput("Can not find requested image") from error
    if image.status != "active":
        raise InvalidInput(f"Image {image_id} is not active.")
    return image


async def check_kernel(call: Call, image: Image) -> None:
    """Whether the caller can read the kernel and the ramdisk that an image is booted with, and they are plain files.

    Raises InvalidInput.
    """
    wanted = kernel_of(Asked({}, image.properties))
    for name, id_ in (("kernel_id", wanted.kernel), ("ramdisk_id", wanted.ramdisk)) if wanted is not None else ():
        if not id_:
            continue
        try:
            found = await call.cloud.images.show(call.context, id_)
        except ImageNotFound as error:
            raise InvalidInput(f"Image {id_}, which the property {name} names, cannot be found.") from error
        if found.status != "active" or found.disk_format not in PLAIN:
            raise InvalidInput(
                f"Image {id_}, which the property {name} names, is {found.status} and {found.disk_format}; it must be "
                f"active and one of {', '.join(sorted(PLAIN))}."
            )


def check_groups(flavor: Flavor) -> None:
    """Whether what a flavor asks for beside the guest's own shape is said completely.

    Raises:
        InvalidInput: several granular groups without a policy.
    """
    specs = flavor.extra_specs
    if len(granular_groups(specs)) > 1 and "group_policy" not in specs:
        raise InvalidInput("The flavor has more than one group of resources or traits, and so needs group_policy.")


def with_devices(call: Call, flavor: Flavor) -> Flavor:
    """A flavor as a server gets it: with the PCI devices that its aliases mean now, whatever becomes of the aliases.

    Raises:
        InvalidInput: it names an alias that is not defined.
    """
    requests = read_requests(flavor.extra_specs, call.cloud.options.pci_aliases)
    return msgspec.structs.replace(flavor, pci_requests=requests)


def check_same_place(before: Image, after: Image, flavor: Flavor) -> None:
    """Whether a server can be made from another image with the CPUs, NUMA cells and pages of its host that it has.

    Raises:
        InvalidInput: the images ask for different ones.
    """
    old, new = shape_of(flavor, before), shape_of(flavor, after)
    same = (old.cells, old.cpu.dedicated, old.cpu.thread_policy, old.memory.page_size) == (
        new.cells, new.cpu.dedicated, new.cpu.thread_policy, new.memory.page_size
    )
    if not same:
        raise InvalidInput("An image's NUMA cells, CPU policy and page size cannot be changed by a rebuild.")


def check_fit(call: Call, image: Image, flavor: Flavor) -> None:
    """Whether the flavor is big enough for the image and they agree on the guest. Raises InvalidInput, Forbidden."""
    check_size(image, flavor)
    if flavor.root_gib == 0 and not call.allows(ZERO_DISK):
        raise Forbidden("Only volume-backed servers are allowed for flavors with zero disk.")


def check_size(image: Image, flavor: Flavor) -> None:
    """Whether the flavor has memory and disk for the image, no root disk takes any, and together they describe a guest
    that can be. Raises InvalidInput. Spec: EMG-34."""
    shape_of(flavor, image)
    check_groups(flavor)
    if image.min_ram > flavor.memory_mib:
        raise InvalidInput("Flavor's memory is too small for requested image.")
    if flavor.root_gib == 0:
        return
    room = flavor.root_gib * GIB
    needed = max(image.size, image.min_disk * GIB)
    if needed > room:
        raise InvalidInput("Flavor's disk is too small for requested image. "
                           f"Flavor disk is {room} bytes, image is {needed} bytes.")


def block_devices(call: Call, body: dict[str, Any]) -> tuple[BlockDevice, ...]:
    """The block devices asked for.

    This cloud has no volume service, so what names or would make a volume is refused as if that service did not
    know it.

    Raises:
        InvalidInput, PolicyNotAuthorized.
    """
    legacy, current = body.get("block_device_mapping"), body.get("block_device_mapping_v2")
    if legacy is not None and current is not None:
        raise InvalidInput("Using different block_device_mapping syntaxes is not allowed in the same request.")
    if legacy or current:
        call.require(ATTACH_VOLUME)
    for entry in legacy or ():
        source = entry.get("volume_id") or entry.get("snapshot_id")
        if source is not None and entry.get("no_device") is None:
            raise _no_volume(source)
    devices = tuple(_device(entry) for entry in current or () if not entry.get("no_device"))
    _check_boot_order(devices, str(body.get("imageRef") or ""))
    return devices


def _no_volume(source: str) -> InvalidInput:
    return InvalidInput(f"Block Device Mapping is Invalid: failed to get volume {source}.")


def _device(entry: dict[str, Any]) -> BlockDevice:
    """Where a device is to be is never guessed. Raises InvalidInput. Spec: BDM-29, BDM-30."""
    source = entry["source_type"]
    reference = entry.get("uuid") or entry.get(f"{source}_id")
    destination = entry.get("destination_type")
    if destination is None:
        raise InvalidInput("Block Device Mapping is Invalid: destination_type is missing; it is local or volume.")
    if destination == "local" and source not in ("blank", "image"):
        raise InvalidInput(f"Block Device Mapping is Invalid: source type {source} needs destination_type volume.")
    if source != "blank" and not reference:
        raise InvalidInput(f"Block Device Mapping is Invalid: a uuid is needed for source type {source}.")
    if destination == "volume":
        if source in ("blank", "image") and not entry.get("volume_size"):
            raise InvalidInput("Block Device Mapping is Invalid: a volume made at boot needs its volume_size.")
        raise _no_volume(str(reference or "of a new server"))
    index = entry.get("boot_index")
    index = None if index in (None, "None") or int(index) < 0 else int(index)
    _check_device(entry, source, index)
    return BlockDevice(
        uuid=str(uuid.uuid4()), source_type=source, destination_type=destination, boot_index=index,
        image_id=reference if source == "image" else None, volume_size=entry.get("volume_size") or None,
        guest_format=entry.get("guest_format") or None, device_name=entry.get("device_name"),
        device_type=entry.get("device_type"), disk_bus=entry.get("disk_bus"),
        delete_on_termination=bool(entry.get("delete_on_termination", True)), tag=entry.get("tag"),
    )


def _check_device(entry: dict[str, Any], source: str, index: int | None) -> None:
    """Whether a local device can be what is asked for. Raises InvalidInput."""
    kind, form = entry.get("device_type") or "disk", entry.get("guest_format") or None
    if source == "blank" and index == 0:
        raise InvalidInput("Block Device Mapping is Invalid: a blank device cannot be the first to be booted from.")
    if kind != "disk":
        raise InvalidInput(f"Block Device Mapping is Invalid: a local device is a disk here, not a {kind}.")
    if source == "blank" and form not in (None, SWAP, *FILE_SYSTEMS):
        known = ", ".join((SWAP, *FILE_SYSTEMS))
        raise InvalidInput(f"Block Device Mapping is Invalid: guest_format {form!r} is none of {known}.")


def check_local_disks(devices: Sequence[BlockDevice], image: Image, flavor: Flavor) -> None:
    """Whether the flavor allows the blank local disks that are asked for, ephemeral ones of GiB and a swap disk of MiB,
    and the guest can have the buses and the names of all. Raises InvalidInput."""
    check_sizes(devices, flavor)
    asked = shape_of(flavor, image).devices
    for device in devices:
        bus = bus_of(device)
        check_bus(bus, asked.firmware.machine)
        if device.boot_index == 0 and bus == "virtio" and asked.disks.cdrom_root:
            raise InvalidInput("A CD-ROM cannot be attached to the bus virtio.")
    names = [device.device_name for device in devices if device.device_name]
    if len(set(names)) < len(names):
        raise InvalidInput("Block Device Mapping is Invalid: two devices are asked for under one device_name.")


def _check_boot_order(devices: Sequence[BlockDevice], image_id: str) -> None:
    """Exactly one boot device, and an order without gaps."""
    order = sorted(device.boot_index for device in devices if device.boot_index is not None)
    if devices and not order and not image_id:
        raise InvalidInput("Block Device Mapping is Invalid: Boot sequence for the instance and image/block "
                           "device mapping combination is not valid.")
    if order != list(range(len(order))):
        raise InvalidInput("Block Device Mapping is Invalid: the boot order has gaps or names a place twice.")
    for device in devices:
        if device.boot_index == 0 and image_id and device.image_id != image_id:
            raise InvalidInput("Block Device Mapping is Invalid: the boot device is another image than imageRef.")
        if device.source_type == "image" and device.boot_index != 0:
            raise InvalidInput("Block Device Mapping is Invalid: Mapping image to local is not supported.")


def root_image(body: dict[str, Any], devices: Sequence[BlockDevice]) -> str:
    """The image of the root disk. Raises InvalidInput: none is named."""
    image_id = str(body.get("imageRef") or "")
    booted = [device.image_id for device in devices if device.boot_index == 0 and device.image_id]
    found = image_id or (booted[0] if booted else "")
    if not found:
        raise InvalidInput("Invalid imageRef provided.")
    return found
