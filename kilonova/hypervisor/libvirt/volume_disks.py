"""Volumes of guests as elements of their domains, and found again in what libvirt describes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from kilonova.hypervisor.libvirt.domain.disk import Bus
from kilonova.hypervisor.libvirt.domain.volume import NbdServer, VolumeDisk, VolumeFile
from kilonova.hypervisor.libvirt.hotplug import IsIt
from kilonova.hypervisor.libvirt.limits import disk_limits
from kilonova.hypervisor.libvirt.secrets import volume_secret
from kilonova.hypervisor.volumes import NBD_PORT, FileSource, GuestVolume, NbdSource, VolumeSource


def volume_disk(
    instance: str, volume: GuestVolume, *, target: str, bus: Bus, packed: bool, boot_order: int | None
) -> VolumeDisk:
    """The disk that a volume is."""
    return VolumeDisk(
        source=_server(volume.source), serial=volume.id, target=target, bus=bus, device=volume.device,
        boot_order=boot_order, read_only=volume.read_only or volume.device == "cdrom", shared=volume.multiattach,
        discard=volume.discard, limits=disk_limits(volume.limits), packed=packed and bus == "virtio",
        write_through=volume.write_through,
        secret=volume_secret(instance, volume.id).id if volume.encrypted else None,
    )


def _server(source: VolumeSource) -> NbdServer | VolumeFile:
    if isinstance(source, FileSource):
        return VolumeFile(path=source.path, format=source.format)
    if source.socket:
        return NbdServer(export=source.export, socket=source.socket, tls=source.tls)
    return NbdServer(export=source.export, host=source.host, port=source.port, tls=source.tls)


def volume_of(disk: ET.Element) -> str:
    """The id of the volume that a device of a guest is, "" for another device."""
    return (disk.findtext("serial") or "") if disk.tag == "disk" else ""


def disk_of(volume_id: str) -> IsIt:
    """Finds the disk that a volume is."""
    return lambda device: volume_of(device) == volume_id


def source_of(disk: ET.Element) -> VolumeSource | None:
    """Where a disk, or the mirror of one, has its data; None if this product made no such disk."""
    source, driver = disk.find("source"), disk.find("driver")
    if source is None:
        return None
    if disk.get("type") == "file":
        format_ = driver.get("type") if driver is not None else None
        return FileSource(path=source.get("file", ""), format="qcow2" if format_ == "qcow2" else "raw")
    host = source.find("host")
    if source.get("protocol") != "nbd" or host is None:
        return None
    export, tls = source.get("name", ""), source.get("tls") == "yes"
    if host.get("transport") == "unix":
        return NbdSource(export=export, socket=host.get("socket", ""), tls=tls)
    return NbdSource(export=export, host=host.get("name", ""), port=int(host.get("port", NBD_PORT)), tls=tls)


def encrypted_volumes(described: str) -> list[str]:
    """The ids of the encrypted volumes in a description of a guest."""
    disks = ET.fromstring(described).iterfind("devices/disk")
    return [found for disk in disks if (found := volume_of(disk)) and disk.find("source/encryption") is not None]


def target_in(disk: ET.Element) -> str:
    """The name that a disk has in libvirt."""
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""
