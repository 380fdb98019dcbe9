"""How the disk of a rescue is attached.

If its image says how (`hw_rescue_device`, `hw_rescue_bus`) the rescue is stable: the guest keeps its hardware and all
of its disks in their places, and the rescue disk is one more, from which it boots. Otherwise the rescue disk takes the
first place and the hardware is that which the rescue image asks for; the guest's own disks follow.
"""

from __future__ import annotations

from typing import Literal, get_args

from kilonova.domain.errors import InvalidInput
from kilonova.domain.image import Image
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.domain.disk import Bus
from kilonova.hypervisor.libvirt.properties import Hardware

DEVICE, BUS = "hw_rescue_device", "hw_rescue_bus"
Attached = tuple[Literal["disk", "cdrom"], Bus]


def is_stable(image: Image) -> bool:
    """Whether the rescue image says how it is attached."""
    return DEVICE in image.properties or BUS in image.properties


def hardware_properties(guest: Guest) -> dict[str, str]:
    """The image properties that describe the guest's hardware."""
    if guest.rescue is None or is_stable(guest.rescue):
        return guest.properties
    return guest.rescue.properties


def attachment(image: Image, wanted: Hardware) -> Attached:
    """The kind of device and its bus. Raises InvalidInput for one that is not known."""
    device = image.properties.get(DEVICE, "disk")
    if device not in ("disk", "cdrom"):
        raise InvalidInput(f"{device!r} is not a value of {DEVICE} that this hypervisor knows.")
    standard: Bus = wanted.disk_bus
    if device == "cdrom":
        standard = wanted.cdrom_bus or ("sata" if wanted.pcie else "ide")
    for bus in get_args(Bus):
        if image.properties.get(BUS, standard) == bus and (device, bus) != ("cdrom", "virtio"):
            return ("cdrom" if device == "cdrom" else "disk"), bus
    raise InvalidInput(f"{image.properties[BUS]!r} is not a bus for a rescue {device} that this hypervisor knows.")
