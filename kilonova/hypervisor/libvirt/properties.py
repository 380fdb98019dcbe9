"""What a shape asks of the guest's hardware, in the words of this hypervisor.

Spec: EMG-34.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from kilonova.domain.errors import TryElsewhere
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.domain.disk import Bus
from kilonova.hypervisor.libvirt.domain.graphics import VideoModel
from kilonova.hypervisor.libvirt.domain.interface import Model
from kilonova.shapes.asked import Asked
from kilonova.shapes.devices import Devices, devices_shape
from kilonova.shapes.legacy import modern
from kilonova.shapes.limits import Limits, limits_of

T = TypeVar("T", bound=str)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The guest's hardware as asked for, with what is usual where nothing is.

    Args:
        cdrom_bus: None for what suits the machine.
        video: None for no screen.
    """

    devices: Devices
    disk_bus: Bus
    cdrom_bus: Bus | None
    vif_model: Model
    video: VideoModel | None
    limits: Limits
    pcie: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pcie", "q35" in self.devices.firmware.machine)


def hardware(properties: Mapping[str, str], extra_specs: Mapping[str, str]) -> Hardware:
    """Read the properties of the image and the extra specs of the flavor.

    Raises:
        InvalidInput: a value that is not known. TryElsewhere: one that this hypervisor does not know.
    """
    asked = Asked(extra_specs, modern(properties))
    devices = devices_shape(asked)
    screen = devices.screens.video
    return Hardware(
        devices=devices,
        disk_bus=_offered("hw_disk_bus", devices.disks.bus, get_args(Bus)) or "virtio",
        cdrom_bus=_offered("hw_cdrom_bus", devices.disks.cdrom_bus, get_args(Bus)),
        vif_model=_offered("hw_vif_model", devices.interfaces.model, get_args(Model)) or "virtio",
        video=None if screen == "none" else _offered("hw_video_model", screen, get_args(VideoModel)) or "vga",
        limits=limits_of(asked),
    )


def is_encrypted(guest: Guest) -> bool:
    """Whether the guest's own disks are encrypted. A rescue disk is not. Raises as `hardware`."""
    return hardware(guest.properties, guest.extra_specs).devices.disks.encryption is not None


def offered_bus(asked: str | None) -> Bus | None:
    """A bus that was asked for one device. Raises TryElsewhere: this hypervisor does not know it."""
    return _offered("disk_bus", asked, get_args(Bus))


def _offered(key: str, value: str | None, offered: tuple[T, ...]) -> T | None:
    for one in offered:
        if value == one:
            return one
    if value is None:
        return None
    raise TryElsewhere(f"This hypervisor does not know the value {value!r} of {key}.")
