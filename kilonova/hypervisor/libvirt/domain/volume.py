"""Disks that are volumes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.disk import Bus
from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.hypervisor.libvirt.domain.limits import DiskLimits


@dataclass(frozen=True, kw_only=True)
class NbdServer:
    """An export on a socket of the host, or at an address. Of what the server reads it from, the guest knows nothing.

    Args:
        socket: None for TCP. host, port: None for a socket. tls: the connection is encrypted.
    """

    export: str
    socket: str | None = None
    host: str | None = None
    port: int | None = None
    tls: bool = False

    def add_to(self, disk: ET.Element) -> ET.Element:
        """Returns the source."""
        disk.set("type", "network")
        add(disk, "driver", name="qemu", type="raw")
        source = add(disk, "source", protocol="nbd", name=self.export, tls=True if self.tls else None)
        unix = self.socket is not None
        add(source, "host", transport="unix" if unix else None, socket=self.socket, name=self.host, port=self.port)
        return source


@dataclass(frozen=True, kw_only=True)
class VolumeFile:
    """A file of the host."""

    path: str
    format: Literal["raw", "qcow2"]

    def add_to(self, disk: ET.Element) -> ET.Element:
        """Returns the source."""
        disk.set("type", "file")
        add(disk, "driver", name="qemu", type=self.format)
        return add(disk, "source", file=self.path)


@dataclass(frozen=True, kw_only=True)
class VolumeDisk:
    """One volume. A guest whose volume has failed stands still until it is resumed, and then tries again what failed.

    Args:
        serial: by which the guest, and this product, know the disk. target: its name in libvirt, unique in the guest.
        boot_order: 1 is tried first; None is never tried. shared: other guests may write to it too.
        write_through: a write is done only when it was flushed. discard: the guest may give up blocks.
        limits: None for a disk without. packed: its rings are packed, for virtio only.
        secret: the name that libvirt knows the key of an encrypted volume by.
    """

    source: NbdServer | VolumeFile
    serial: str
    target: str
    bus: Bus
    device: Literal["disk", "cdrom"] = "disk"
    boot_order: int | None = None
    read_only: bool = False
    shared: bool = False
    write_through: bool = False
    discard: bool = False
    limits: DiskLimits | None = None
    packed: bool = False
    secret: str | None = None

    def element(self) -> ET.Element:
        disk = make("disk", device=self.device)
        source = self.source.add_to(disk)
        cache = "directsync" if self.write_through else "none"
        disk[0].attrib |= {"cache": cache, "error_policy": "stop", "rerror_policy": "stop"}
        if self.discard:
            disk[0].set("discard", "unmap")
        if self.packed:
            disk[0].set("packed", "on")
        if self.secret is not None:
            add(add(source, "encryption", format="luks"), "secret", type="passphrase", uuid=self.secret)
        add(disk, "target", dev=self.target, bus=self.bus)
        if self.limits is not None:
            self.limits.add_to(disk)
        if self.read_only:
            add(disk, "readonly")
        if self.shared:
            add(disk, "shareable")
        add(disk, "serial", self.serial)
        if self.boot_order is not None:
            add(disk, "boot", order=self.boot_order)
        return disk
