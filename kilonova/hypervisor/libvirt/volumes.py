"""Volumes of guests: what is done to libvirt in one thread, and can be repeated. They are known by their serial
numbers, which libvirt keeps although a guest may see only their beginning."""

from __future__ import annotations

import enum
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import libvirt  # type: ignore[import-untyped]
import libvirt_qemu  # type: ignore[import-untyped]

from kilonova.domain.errors import Conflict, NotFound
from kilonova.domain.states import PowerState
from kilonova.hypervisor.libvirt import secrets
from kilonova.hypervisor.libvirt.domain.volume import VolumeDisk
from kilonova.hypervisor.libvirt.events import power_state
from kilonova.hypervisor.libvirt.hotplug import LIVE, STORED, disks_in, found_in
from kilonova.hypervisor.libvirt.power import find
from kilonova.hypervisor.libvirt.secrets import LibvirtSecret
from kilonova.hypervisor.libvirt.volume_disks import disk_of, source_of, target_in, volume_of
from kilonova.hypervisor.volumes import CopyState, HeldVolume, VolumeCopy, VolumeSource, VolumeUsage

COPY = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
COPY_MEMORY = 64 << 20
"""Bytes of QEMU's memory that a copy may take: with less, it asks for less data at once, and is slower."""
COPY_OPTIONS = {libvirt.VIR_DOMAIN_BLOCK_COPY_BUF_SIZE: COPY_MEMORY}


def attach(
    connection: libvirt.virConnect, uuid: str, disk: VolumeDisk, values: Mapping[LibvirtSecret, str]
) -> None:
    """Into the running guest and into the definition, or into neither."""
    domain = find(connection, uuid)
    if domain is None:
        return
    is_it = disk_of(disk.serial)
    lacking = 0
    for which in (LIVE, STORED) if domain.isActive() else (STORED,):
        lacking |= which if found_in(domain, which, is_it) is None else 0
    if lacking:
        with secrets.known(connection, values):
            domain.attachDeviceFlags(ET.tostring(disk.element(), encoding="unicode"), lacking)


class Hold(enum.Enum):
    """How a guest holds a volume."""

    NONE = enum.auto()
    FREE = enum.auto()
    """It can be asked to let go of it."""
    COPIED = enum.auto()
    STILL = enum.auto()
    """The guest stands still, and would let go of it when it goes on, which nobody expects by then."""


def hold(connection: libvirt.virConnect, uuid: str, volume_id: str) -> tuple[Hold, str]:
    """How a guest holds a volume, and the name in libvirt."""
    domain = find(connection, uuid)
    if domain is None:
        return Hold.NONE, ""
    live = found_in(domain, LIVE, disk_of(volume_id)) if domain.isActive() else None
    if live is None:
        return (Hold.FREE if found_in(domain, STORED, disk_of(volume_id)) is not None else Hold.NONE), ""
    if live.find("mirror") is not None:
        return Hold.COPIED, target_in(live)
    still = power_state(*domain.state()) is PowerState.PAUSED
    return (Hold.STILL if still else Hold.FREE), target_in(live)


def held(domain: libvirt.virDomain) -> tuple[HeldVolume, ...]:
    """The volumes of one guest."""
    running = _volumes(domain, LIVE) if domain.isActive() else {}
    defined = _volumes(domain, STORED)
    return tuple(sorted((
        HeldVolume(
            id=id_, device_name=f"/dev/{target_in(disk)}", running=_source(running.get(id_)),
            defined=_source(defined.get(id_)),
        )
        for id_, disk in (defined | running).items()
    ), key=lambda one: one.device_name))


def _volumes(domain: libvirt.virDomain, which: int) -> dict[str, ET.Element]:
    return {volume_of(disk): disk for disk in disks_in(domain, which) if volume_of(disk)}


def grow(connection: libvirt.virConnect, uuid: str, volume_id: str, size: int) -> bool:
    """Let a guest see the new size. Returns False while the volume is not served with it."""
    found = find_live(connection, uuid, volume_id)
    if found is None:
        return True
    domain, disk = found
    try:
        node = node_of(domain, disk)
        payload: int = node["image"].get("format-specific", {}).get("data", {}).get("payload-offset", 0)
        if node["image"]["virtual-size"] >= size - payload:
            return True
        knock(domain, node["node-name"])
        domain.blockResize(target_in(disk), size - payload, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    except libvirt.libvirtError:
        return not domain.isActive()
    return True


def node_of(domain: libvirt.virDomain, disk: ET.Element) -> dict[str, Any]:
    """What QEMU tells of what is in a disk. Raises libvirtError, NotFound."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-block"}), 0))
    alias = disk.find("alias")
    name = alias.get("name") if alias is not None else None
    for one in answer["return"]:
        if name in one.get("qdev", "").split("/") and "inserted" in one:
            found: dict[str, Any] = one["inserted"]
            return found
    raise NotFound(f"The disk {target_in(disk)} of instance {domain.UUIDString()} is just going.")


def knock(domain: libvirt.virDomain, node: str) -> None:
    """Read something. A client of NBD that has lost its server connects again only when somebody reads or writes, and
    learns of a new size only when it connects."""
    command = f'qemu-io {node} "read 0 512"'
    libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)


def start_copy(
    connection: libvirt.virConnect, uuid: str, volume_id: str, target: VolumeDisk, values: Mapping[LibvirtSecret, str]
) -> None:
    """Begin to copy a volume to another, unless that is being done or has been."""
    domain, live, stored = require(connection, uuid, volume_id)
    wanted = target.element()
    if source_of(wanted) in (_source(live), _mirror(live)) or (live is None and source_of(wanted) == _source(stored)):
        return
    if live is None:
        raise Conflict(f"Instance {uuid} does not run.")
    if live.find("mirror") is not None:
        raise Conflict(f"Volume {volume_id} of instance {uuid} is being copied to another volume.")
    with secrets.known(connection, values):
        domain.blockCopy(target_in(live), ET.tostring(wanted, encoding="unicode"), COPY_OPTIONS, COPY)


def copy_state(connection: libvirt.virConnect, uuid: str, volume_id: str, target: VolumeSource) -> VolumeCopy:
    """How far a copy is."""
    domain, live, stored = require(connection, uuid, volume_id)
    if target == _source(live if live is not None else stored):
        return VolumeCopy(state=CopyState.DONE)
    mirror = live.find("mirror") if live is not None else None
    if live is None or mirror is None or source_of(mirror) != target:
        return VolumeCopy(state=CopyState.NONE)
    progress = domain.blockJobInfo(target_in(live), 0) or {}
    ready = mirror.get("ready") == "yes"
    return VolumeCopy(
        state=CopyState.READY if ready else CopyState.COPYING, done=progress.get("cur", 0), total=progress.get("end", 0)
    )


def pivot(connection: libvirt.virConnect, uuid: str, volume_id: str, target: VolumeSource) -> None:
    """Let the guest use the target of a copy that is ready."""
    state = copy_state(connection, uuid, volume_id, target).state
    domain, live, _ = require(connection, uuid, volume_id)
    if state is CopyState.DONE:
        return
    if state is not CopyState.READY or live is None:
        raise Conflict(f"The copy of volume {volume_id} of instance {uuid} is not ready: {state}.")
    domain.blockJobAbort(target_in(live), libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def abort_copy(connection: libvirt.virConnect, uuid: str, volume_id: str) -> None:
    """End the copy of a volume, if one is made."""
    found = find_live(connection, uuid, volume_id)
    if found is None:
        return
    domain, disk = found
    if disk.find("mirror") is None:
        return
    try:
        domain.blockJobAbort(target_in(disk))
    except libvirt.libvirtError:
        again = find_live(connection, uuid, volume_id)
        if again is not None and again[1].find("mirror") is not None:  # else it ended by itself
            raise


def usage(connection: libvirt.virConnect, uuid: str) -> dict[str, VolumeUsage]:
    """What a running guest did with its volumes."""
    domain = find(connection, uuid)
    if domain is None or not domain.isActive():
        return {}
    ids = {target_in(disk): volume_of(disk) for disk in disks_in(domain, LIVE) if volume_of(disk)}
    ((_, stats),) = connection.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_BLOCK)
    found = {}
    for number in range(stats.get("block.count", 0)):
        prefix = f"block.{number}."
        name = stats.get(f"{prefix}name", "")
        if name in ids and f"{prefix}rd.reqs" in stats:
            found[ids[name]] = VolumeUsage(
                read_requests=stats[f"{prefix}rd.reqs"], read_bytes=stats[f"{prefix}rd.bytes"],
                write_requests=stats[f"{prefix}wr.reqs"], write_bytes=stats[f"{prefix}wr.bytes"],
            )
    return found


def find_live(
    connection: libvirt.virConnect, uuid: str, volume_id: str
) -> tuple[libvirt.virDomain, ET.Element] | None:
    """A guest that runs with the volume."""
    domain = find(connection, uuid)
    if domain is None or not domain.isActive():
        return None
    disk = found_in(domain, LIVE, disk_of(volume_id))
    return None if disk is None else (domain, disk)


def require(
    connection: libvirt.virConnect, uuid: str, volume_id: str
) -> tuple[libvirt.virDomain, ET.Element | None, ET.Element | None]:
    """A guest with its disk as it runs with it and as it is defined with it. Raises NotFound: it has neither."""
    domain = find(connection, uuid)
    if domain is not None:
        live = found_in(domain, LIVE, disk_of(volume_id)) if domain.isActive() else None
        stored = found_in(domain, STORED, disk_of(volume_id))
        if live is not None or stored is not None:
            return domain, live, stored
    raise NotFound(f"Instance {uuid} has no volume {volume_id} on this host.")


def _source(disk: ET.Element | None) -> VolumeSource | None:
    return source_of(disk) if disk is not None else None


def _mirror(disk: ET.Element | None) -> VolumeSource | None:
    """Where a disk is being copied to."""
    return _source(disk.find("mirror")) if disk is not None else None
