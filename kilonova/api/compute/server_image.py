"""The image, flavor and block devices of a new server, and whether they fit each other. Spec: API-610, API-613."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.block_devices import (
    CURRENT,
    GIB,
    LEGACY,
    check_boot_order,
    check_devices,
    check_room,
    requested_devices,
    root_image,
)
from kilonova.api.compute.server_volumes import check_volumes, image_of_root
from kilonova.api.policy import Audience, Rule
from kilonova.db import flavors
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import FlavorNotFound, Forbidden, ImageNotFound, InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.asked import Asked
from kilonova.shapes.image_disks import MAPPING, ROOT, SECOND_FORM, disks_in
from kilonova.shapes.kernel import PLAIN, kernel_of
from kilonova.shapes.pci_requests import read_requests
from kilonova.shapes.resources import granular_groups
from kilonova.shapes.shape import shape_of

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


def check_size(image: Image, flavor: Flavor, *, volume_backed: bool = False) -> None:
    """Whether the flavor has memory and disk for the image, no root disk takes any, and together they describe a guest
    that can be. A volume-backed server needs no disk of the flavor. Raises InvalidInput. Spec: EMG-34."""
    shape_of(flavor, image)
    check_groups(flavor)
    if image.min_ram > flavor.memory_mib:
        raise InvalidInput("Flavor's memory is too small for requested image.")
    if flavor.root_gib == 0 or volume_backed:
        return
    room = flavor.root_gib * GIB
    needed = max(image.size, image.min_disk * GIB)
    if needed > room:
        raise InvalidInput("Flavor's disk is too small for requested image. "
                           f"Flavor disk is {room} bytes, image is {needed} bytes.")


def block_devices(call: Call, body: dict[str, Any]) -> tuple[BlockDevice, ...]:
    """The block devices asked for.

    Raises:
        InvalidInput, PolicyNotAuthorized.
    """
    if body.get(LEGACY) or body.get(CURRENT):
        call.require(ATTACH_VOLUME)
    return requested_devices(body)


async def find_root(
    call: Call, body: dict[str, Any], devices: tuple[BlockDevice, ...], flavor: Flavor, most: int
) -> tuple[Image, tuple[BlockDevice, ...]]:
    """The image that servers are made from, checked against their flavor and their block devices, and those with the
    disks that the image asks for. The image of a server that boots from a volume has no id, but tells what is known of
    the image of that volume.

    Args:
        most: how many servers are asked for.

    Raises:
        InvalidInput, Forbidden, ServiceUnavailable. Spec: API-108, EMG-30.
    """
    root = _root_volume(devices)
    image: Image | None = None
    if root is None or root.image_id is not None:
        image = await find_image(call, root_image(body, devices))
        if root is None:
            image, devices = _with_disks(image, devices)
            root = _root_volume(devices)
    await check_volumes(call, devices, most)
    if image is None:
        assert root is not None
        image = await image_of_root(call, root)
    if root is None:
        check_fit(call, image, flavor)
    else:
        check_size(image, flavor, volume_backed=True)
    await check_kernel(call, image)
    check_devices(devices, image, flavor)
    for device in devices:
        if device.is_volume and device.image_id is not None and device is not root:
            check_room(device, await find_image(call, device.image_id))
    return image if root is None else msgspec.structs.replace(image, id=""), devices


def _root_volume(devices: Sequence[BlockDevice]) -> BlockDevice | None:
    return next((device for device in devices if device.boot_index == 0 and device.is_volume), None)


def _with_disks(image: Image, devices: tuple[BlockDevice, ...]) -> tuple[Image, tuple[BlockDevice, ...]]:
    """An image that consists of disks is itself no disk. What the request says of a device counts for more."""
    disks = disks_in(image.properties)
    if not disks:
        return image, devices
    asked = [device for device in devices if device.image_id != image.id]
    names = {device.device_name for device in asked} - {None}
    places = {device.boot_index for device in asked} - {None}
    added = [disk for disk in disks if disk.device_name not in names and disk.boot_index not in places]
    rest = {name: value for name, value in image.properties.items() if name not in (MAPPING, SECOND_FORM, ROOT)}
    found = (*added, *asked)
    check_boot_order(found, "")
    return msgspec.structs.replace(image, properties=rest), found
