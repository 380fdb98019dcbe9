"""Volumes that are files, whose snapshots the hypervisor takes for the volume service while a guest writes.

The volume service makes an empty file above the one that the guest writes to, and the guest changes to that: what is
below keeps what it has, which is the snapshot. A snapshot is deleted by merging files. Spec: EMV-40, EMV-41.
"""

from __future__ import annotations

import contextlib
from pathlib import PurePosixPath
from typing import Any

import msgspec

from kilonova.db import block_devices, instances
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import InstanceNotReady, InvalidInput, InvalidVolume, NotSupported
from kilonova.domain.states import VmState
from kilonova.engine.operation import Tx
from kilonova.hypervisor.volumes import FileSource, guest_volume
from kilonova.operations.environment import Environment
from kilonova.operations.records import check
from kilonova.services.volumes import Attachment

WRITTEN = "written_file"
"""In the connection info of a volume: the path of the file that its guest writes to, since that was changed."""


class VolumeFile(msgspec.Struct, frozen=True):
    """Where a guest is, and the file of its volume. device: the uuid of the record."""

    host: str
    device: str
    file: FileSource


def require_attached(tx: Tx, server: str, volume_id: str, action: str) -> None:
    """Begin: in any state of a server that has a host, and with which nothing else is being done.

    Raises:
        InstanceNotFound, InstanceNotReady, InstanceInvalidState. VolumeNotAttached. InvalidVolume: it just comes or
            goes. Spec: API-263, API-264.
    """
    check(tx, server, action=action, vm=tuple(VmState), needs_host=True)
    device = block_devices.of_volume(tx.conn, server, volume_id)
    if device.state is not AttachState.ATTACHED or device.connection_info is None:
        raise InvalidVolume(f"Invalid volume: volume {volume_id} is {device.state.value} and not attached.")


async def require_status(env: Environment, snapshot_id: str, volume_id: str, status: str) -> None:
    """The volume service still wants it: one that has waited too long may have removed the files.

    Raises:
        VolumeSnapshotNotFound. InvalidInput.
    """
    found = await env.volumes.snapshot(None, snapshot_id)
    if found.status != status or found.volume_id != volume_id:
        raise InvalidInput(f"Snapshot {snapshot_id} of volume {found.volume_id} is {found.status}, and not {status}.")


async def report(env: Environment, snapshot_id: str, status: str) -> None:
    """Tell the volume service. One that has given up meanwhile wants to hear of nothing."""
    with contextlib.suppress(InvalidInput):
        await env.volumes.report_snapshot(snapshot_id, status)


def file_of(tx: Tx, server: str, volume_id: str) -> VolumeFile:
    """Raises NotSupported: the volume is no file of the host, or an encrypted one. Spec: SNP-34."""
    host = instances.get(tx.conn, server).host
    if host is None:
        raise InstanceNotReady(server)
    device = block_devices.of_volume(tx.conn, server, volume_id)
    volume = guest_volume(device)
    if not isinstance(volume.source, FileSource) or volume.encrypted:
        raise NotSupported(
            f"The hypervisor cannot take snapshots of volume {volume_id}, which is no unencrypted file of its host.",
            hint="the volume service has to take them itself",
        )
    return VolumeFile(host, device.uuid, volume.source)


def beside(file: FileSource, name: str) -> FileSource:
    """The qcow2 file of that name in the same directory."""
    return FileSource(path=str(PurePosixPath(file.path).with_name(name)), format="qcow2")


def record_file(tx: Tx, device: str, file: FileSource) -> None:
    """The guest writes to this file of its volume from now on."""
    stored = msgspec.json.decode(block_devices.get(tx.conn, device).connection_info or "{}", type=dict[str, Any])
    block_devices.update(
        tx.conn, device, now=tx.now, was=tuple(AttachState),
        connection_info=msgspec.json.encode(_written_to(stored, file.path)).decode(),
    )


def still_written(stored: str | None, attachment: Attachment) -> Attachment:
    """An attachment as the volume service tells of it now, but with the file that the guest last wrote to: a service
    may tell of the file that there was when the volume was attached, and a guest that is started from that would lose
    what it wrote since.

    Args:
        stored: the connection info of the same attachment in the record.
    """
    known = msgspec.json.decode(stored or "{}", type=dict[str, Any])
    if WRITTEN not in known or attachment.connection_info is None:
        return attachment
    return msgspec.structs.replace(
        attachment, connection_info=_written_to(attachment.connection_info, known[WRITTEN])
    )


def _written_to(info: dict[str, Any], path: str) -> dict[str, Any]:
    told = {"device_path": path, "format": "qcow2"}
    nested = {"data": info["data"] | told} if "data" in info else told
    return info | nested | {WRITTEN: path}
