"""What an image and a flavor ask of the guest's hardware, read strictly: a value not known is refused.

Spec: EMG-34.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from kilonova.domain.errors import InvalidInput
from kilonova.hypervisor.libvirt.domain.disk import Bus
from kilonova.hypervisor.libvirt.domain.graphics import VideoModel
from kilonova.hypervisor.libvirt.domain.interface import Model
from kilonova.shapes.asked import FALSE, TRUE, Asked
from kilonova.shapes.limits import Limits, limits_of

T = TypeVar("T", bound=str)

MACHINE = re.compile(r"(pc|q35|pc-(i440fx|q35)-[0-9a-z.]+)")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The guest's hardware as asked for.

    Args:
        cdrom_bus: None for what suits the machine.
        video: None for no screen.
        windows: the guest runs Windows.
    """

    machine: str = "q35"
    uefi: bool = False
    disk_bus: Bus = "virtio"
    cdrom_bus: Bus | None = None
    vif_model: Model = "virtio"
    video: VideoModel | None = "vga"
    entropy: bool = True
    agent: bool = True
    windows: bool = False
    limits: Limits = Limits()
    pcie: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pcie", "q35" in self.machine)


def hardware(properties: Mapping[str, str], extra_specs: Mapping[str, str]) -> Hardware:
    """Read the properties of the image and the extra specs of the flavor.

    Raises:
        InvalidInput: a value that is not known.
    """
    machine = properties.get("hw_machine_type", "q35")
    if not MACHINE.fullmatch(machine):
        raise _unknown("hw_machine_type", machine)
    video = properties.get("hw_video_model", "vga")
    return Hardware(
        machine=machine,
        uefi=_choice(properties, "hw_firmware_type", ("bios", "uefi"), "bios") == "uefi",
        disk_bus=_choice(properties, "hw_disk_bus", get_args(Bus), "virtio"),
        cdrom_bus=_choice(properties, "hw_cdrom_bus", get_args(Bus), None),
        vif_model=_choice(properties, "hw_vif_model", get_args(Model), "virtio"),
        video=None if video == "none" else _choice(properties, "hw_video_model", get_args(VideoModel), "vga"),
        entropy=_boolean(extra_specs, "hw_rng:allowed", True),
        agent=_boolean(properties, "hw_qemu_guest_agent", True),
        windows=properties.get("os_type", "").lower() == "windows",
        limits=limits_of(Asked(extra_specs, properties)),
    )


def _choice(values: Mapping[str, str], key: str, allowed: tuple[T, ...], default: T | None) -> T:
    value = values.get(key, default)
    for one in allowed:
        if value == one:
            return one
    if value is None:
        return default  # type: ignore[return-value]
    raise _unknown(key, value)


def _boolean(values: Mapping[str, str], key: str, default: bool) -> bool:
    value = values.get(key, str(default)).strip().lower()
    if value in TRUE or value in FALSE:
        return value in TRUE
    raise _unknown(key, values[key])


def _unknown(key: str, value: str) -> InvalidInput:
    return InvalidInput(f"{value!r} is not a value of {key} that this hypervisor knows.")
