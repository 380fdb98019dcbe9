"""Disks and CD-ROMs: files of the host, and volumes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kilonova.domain.block_device import next_device_name
from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.hypervisor.libvirt.domain.limits import DiskLimits
from kilonova.shapes.disk_names import PREFIXES

Bus = Literal["virtio", "scsi", "sata", "ide", "usb"]


@dataclass(frozen=True, kw_only=True)
class FileDisk:
    """One disk.

    Args:
        path: as QEMU finds it. target: its name in libvirt, unique in the guest.
        cache: `none` bypasses the host's cache. boot_order: 1 is tried first; None is never tried.
        limits: None for a disk without. packed: its rings are packed, for virtio only.
        secret: the name that libvirt knows the key of an encrypted disk by.
    """

    path: str
    format: Literal["qcow2", "raw"]
    target: str
    bus: Bus
    cache: Literal["none", "writeback"] = "none"
    device: Literal["disk", "cdrom"] = "disk"
    boot_order: int | None = None
    limits: DiskLimits | None = None
    packed: bool = False
    secret: str | None = None

    def element(self) -> ET.Element:
        disk = make("disk", type="file", device=self.device)
        driver = add(disk, "driver", name="qemu", type=self.format, cache=self.cache)
        source = add(disk, "source", file=self.path)
        if self.secret is not None:
            add(add(source, "encryption", format="luks"), "secret", type="passphrase", uuid=self.secret)
        add(disk, "target", dev=self.target, bus=self.bus)
        if self.device == "cdrom":
            add(disk, "readonly")
        else:
            driver.set("discard", "unmap")
        if self.packed:
            driver.set("packed", "on")
        if self.boot_order is not None:
            add(disk, "boot", order=self.boot_order)
        if self.limits is not None:
            self.limits.add_to(disk)
        return disk


class TargetNames:
    """Hands out the names of disks, in order, per kind of bus. reserved: names that it hands out only as such."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._used = set(reserved)

    def next(self, bus: Bus) -> str:
        """For example vda, vdb, sda. Raises TooManyDisks. Spec: BDM-14."""
        name = next_device_name(PREFIXES[bus], self._used)
        self._used.add(name)
        return name
