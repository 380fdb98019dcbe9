"""The files of guests' volumes: what is done to libvirt in one thread, and can be repeated.

A qcow2 file has what was written to it, and the name of the file below it that is read for the rest. libvirt describes
the files of a disk from the one that the guest writes to downwards, each with a number.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import PurePosixPath

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.errors import Conflict, InvalidInput, NotSupported
from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.hypervisor.libvirt.hotplug import LIVE, disks_in
from kilonova.hypervisor.libvirt.volume_disks import source_of, target_in
from kilonova.hypervisor.libvirt.volumes import find_live, require
from kilonova.hypervisor.volumes import FileMerge, FileSource, MergeState

SNAPSHOT = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)


def put_above(connection: libvirt.virConnect, uuid: str, volume_id: str, overlay: FileSource) -> None:
    """Let a running guest write to another file, unless it does already."""
    domain, live = _require_file(connection, uuid, volume_id)
    if source_of(live) == overlay:
        return
    _require_idle(domain, live, volume_id)
    described = make("domainsnapshot")
    disks = add(described, "disks")
    for other in disks_in(domain, LIVE):
        name = target_in(other)
        if name != target_in(live):
            add(disks, "disk", name=name, snapshot="no")
    disk = add(disks, "disk", name=target_in(live), snapshot="external", type="file")
    add(disk, "driver", type="qcow2")
    add(disk, "source", file=overlay.path)
    domain.snapshotCreateXML(ET.tostring(described, encoding="unicode"), SNAPSHOT)


def start_merge(connection: libvirt.virConnect, uuid: str, volume_id: str, merge: FileMerge) -> None:
    """Begin to merge, unless that is being done or has been. The names that files have of those below them stay without
    a directory, as hosts may have them in different ones. The job is asked about first, as by `merge_state`."""
    domain, live = _require_file(connection, uuid, volume_id)
    if domain.blockJobInfo(target_in(live), 0):
        return
    domain, live = _require_file(connection, uuid, volume_id)
    if _is_merged(live, merge):
        return
    _require_idle(domain, live, volume_id)
    target, below = target_in(live), dict(_below(live))
    for name in (merge.file, merge.into):
        if name is not None and name not in below:
            raise InvalidInput(f"Volume {volume_id} of instance {uuid} has no file {name} below the one that it uses.")
    if merge.into is not None:
        domain.blockCommit(
            target, f"{target}[{below[merge.into]}]", f"{target}[{below[merge.file or '']}]", 0,
            libvirt.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE,
        )
    elif merge.file is not None:
        domain.blockRebase(
            target, f"{target}[{below[merge.file]}]", 0, libvirt.VIR_DOMAIN_BLOCK_REBASE_RELATIVE
        )
    else:
        domain.blockPull(target, 0, 0)


def merge_state(connection: libvirt.virConnect, uuid: str, volume_id: str, merge: FileMerge) -> MergeState:
    """How far a merge is. The job is asked about first: when it is over, the files are described without it."""
    domain, live, _ = require(connection, uuid, volume_id)
    if live is None:
        return MergeState.NONE
    running = bool(domain.blockJobInfo(target_in(live), 0))
    _, live, _ = require(connection, uuid, volume_id)
    if live is not None and _is_merged(live, merge):
        return MergeState.DONE
    return MergeState.RUNNING if running else MergeState.NONE


def abort_merge(connection: libvirt.virConnect, uuid: str, volume_id: str) -> None:
    """End the merge of files of a volume, if one is made."""
    found = find_live(connection, uuid, volume_id)
    if found is None:
        return
    domain, disk = found
    if disk.find("mirror") is not None or not domain.blockJobInfo(target_in(disk), 0):
        return
    try:
        domain.blockJobAbort(target_in(disk))
    except libvirt.libvirtError:
        if domain.isActive() and domain.blockJobInfo(target_in(disk), 0):  # else it ended by itself
            raise


def _require_file(
    connection: libvirt.virConnect, uuid: str, volume_id: str
) -> tuple[libvirt.virDomain, ET.Element]:
    """A running guest and its disk. Raises NotFound, Conflict, NotSupported."""
    domain, live, _ = require(connection, uuid, volume_id)
    if live is None:
        raise Conflict(f"Instance {uuid} does not run.")
    if not isinstance(source_of(live), FileSource) or live.find("source/encryption") is not None:
        raise NotSupported(f"Volume {volume_id} of instance {uuid} is no unencrypted file.")
    return domain, live


def _require_idle(domain: libvirt.virDomain, live: ET.Element, volume_id: str) -> None:
    if live.find("mirror") is not None or domain.blockJobInfo(target_in(live), 0):
        raise Conflict(f"Volume {volume_id} of instance {domain.UUIDString()} is being copied or merged.")


def _below(disk: ET.Element) -> Iterator[tuple[str, str]]:
    """The names of the files below the one that a guest writes to, each with its number, the next below first."""
    store = disk.find("backingStore")
    while store is not None and (source := store.find("source")) is not None:
        yield PurePosixPath(source.get("file", "")).name, store.get("index", "")
        store = store.find("backingStore")


def _is_merged(disk: ET.Element, merge: FileMerge) -> bool:
    below = [name for name, _ in _below(disk)]
    if merge.into is not None:
        return merge.file not in below
    return (below[0] if below else None) == merge.file
