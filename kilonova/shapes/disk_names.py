"""The names of disks: what each bus calls them, and which are free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from kilonova.domain.block_device import LETTERS, BlockDevice, next_device_name
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.blank_disks import blank_disks, bus_of
from kilonova.shapes.shape import shape_of

PREFIXES: Mapping[str, str] = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
"""How the names of disks begin, by their bus."""
_USUAL = "virtio"
_CONFIG_DRIVE = ("sd", "hd")
"""How the name of a config drive may begin: its bus is a matter of the host."""


def target_of(device_name: str, bus: str) -> str | None:
    """The name, without its directory, of a disk that is to be called `device_name`; None if disks on that bus are not
    called so."""
    target = device_name.removeprefix("/dev/")
    return target if target[:-1] == PREFIXES[bus] and target[-1:] in LETTERS else None


def local_names(
    volumes: Collection[BlockDevice], *, flavor: Flavor, image: Image | None, asked: Collection[BlockDevice]
) -> dict[str, str | None]:
    """The names, without their directory, of the disks of a server that are no volumes, and the tags of those disks:
    each has the first name that no volume has. Arguments as of `volume_name`."""
    usual = shape_of(flavor, image).devices.disks.bus or _USUAL
    taken = {(volume.device_name or "").removeprefix("/dev/") for volume in volumes}
    root_tag = next((device.tag for device in asked if device.boot_index == 0), None)
    disks = [(usual, root_tag)] if image is not None and image.id else []
    blank = blank_disks(tuple(asked), flavor.ephemeral_gib, flavor.swap_mib)
    disks += [(disk.bus or usual, disk.tag) for disk in blank]
    found: dict[str, str | None] = {}
    for bus, tag in disks:
        found[next_device_name(PREFIXES.get(bus, PREFIXES[_USUAL]), taken | found.keys())] = tag
    return found


def volume_name(
    device: BlockDevice, others: Collection[BlockDevice], *, flavor: Flavor, image: Image | None,
    asked: Collection[BlockDevice], config_drive: bool = False,
) -> str:
    """The name of one more volume of a server, for example `/dev/vdb`: the one that it asks for if its bus has such
    names, else the first that is free. The root disk comes before local disks.

    Args:
        others: the other volumes of the server. image: that of the server. asked: the block devices that the server was
            asked for with, its blank disks among them. config_drive: its guest has one, which is named after those
            disks.

    Raises:
        TooManyDisks: there is none left. InvalidInput: the bus is not known. Spec: BDM-13, BDM-14, RBN-04.
    """
    usual = shape_of(flavor, image).devices.disks.bus or _USUAL
    bus = bus_of(device) or usual
    if bus not in PREFIXES or (bus == _USUAL and device.device_type == "cdrom"):
        bus = "sata"
    wanted = target_of(device.device_name or "", bus)
    if wanted is not None:
        return f"/dev/{wanted}"
    taken = {(other.device_name or "").removeprefix("/dev/") for other in others}
    if device.boot_index != 0:
        taken |= local_names(others, flavor=flavor, image=image, asked=asked).keys()
    if config_drive and PREFIXES[bus] in _CONFIG_DRIVE:
        taken.add(next_device_name(PREFIXES[bus], taken))
    return "/dev/" + next_device_name(PREFIXES[bus], taken)


def with_volume_names(
    devices: Sequence[BlockDevice], *, flavor: Flavor, image: Image | None
) -> tuple[BlockDevice, ...]:
    """The block devices that a server is asked for with, each volume with its name: first those that ask for one, then
    the root disk, then the others. Local disks keep what was asked for.

    Raises:
        TooManyDisks, InvalidInput: as of `volume_name`. Spec: BDM-12, BDM-14, BDM-18, BDM-20.
    """
    volumes = [device for device in devices if device.is_volume]
    named: dict[str, BlockDevice] = {}
    for device in sorted(volumes, key=lambda one: (one.device_name is None, one.boot_index != 0)):
        name = volume_name(device, named.values(), flavor=flavor, image=image, asked=devices)
        named[device.uuid] = msgspec.structs.replace(device, device_name=name)
    return tuple(named.get(device.uuid, device) for device in devices)
