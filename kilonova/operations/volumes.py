"""The volumes of a server while operations work on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import msgspec
import sqlalchemy as sa

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import DeviceNameTaken, KilonovaError, Retryable, VolumeAttachmentNotFound
from kilonova.domain.instance import Instance
from kilonova.engine.operation import Tx
from kilonova.operations.environment import Environment
from kilonova.operations.volume_files import still_written
from kilonova.services.volumes import Attachment
from kilonova.shapes.disk_names import local_names, volume_name


class NamesVolume(Protocol):
    """A block device, or what is known of one."""

    @property
    def uuid(self) -> str: ...

    @property
    def volume_id(self) -> str | None: ...


One = TypeVar("One", bound=NamesVolume)


def named(tx: Tx, instance: Instance, device: BlockDevice) -> BlockDevice:
    """A volume with the name that it will have in the server. Raises TooManyDisks, InvalidInput."""
    name = volume_name(
        device, block_devices.of_server(tx.conn, instance.uuid), flavor=instance.flavor, image=instance.image,
        asked=instance.block_devices, config_drive=bool(instance.config_drive),
    )
    return msgspec.structs.replace(device, device_name=name)


async def refresh_connections(env: Environment, server: str, *, but: str = "") -> None:
    """Before the guest of a server on a host is started: ask how its volumes are reached now, and keep that. The
    attachments are read, never updated, so that the volumes stay as they are. A server without volumes costs no call.

    Args:
        but: the uuid of a block device that is passed over.

    Raises:
        KilonovaError: a volume of the server is not connected, and no guest is started without one of its disks.
        Spec: VOL-11, BDM-37 to BDM-39, BDM-41.
    """
    for device in await env.database.read(lambda conn: block_devices.of_server(conn, server)):
        if device.state is AttachState.ATTACHING or device.uuid == but:
            continue
        attachment = await _attachment(env, device)
        if attachment is None or attachment.connection_info is None:
            raise KilonovaError(
                f"Volume {device.volume_id} of server {server} is not connected to its host.",
                hint="rebuild the server" if device.boot_index == 0 else "detach the volume, and attach it again",
            )
        await keep_connection(env, device.uuid, still_written(device.connection_info, attachment))


async def _attachment(env: Environment, device: BlockDevice) -> Attachment | None:
    if device.attachment_id is None:
        return None
    try:
        return await env.volumes.attachment(device.attachment_id)
    except VolumeAttachmentNotFound:
        return None


def refuse_local_name(tx: Tx, instance: Instance, device: BlockDevice) -> None:
    """Raises DeviceNameTaken: a disk of the server that is no volume is called like this volume."""
    volumes = [one for one in block_devices.of_server(tx.conn, instance.uuid) if one.uuid != device.uuid]
    local = local_names(volumes, flavor=instance.flavor, image=instance.image, asked=instance.block_devices)
    if device.device_name is not None and device.device_name.removeprefix("/dev/") in local:
        raise DeviceNameTaken(device.device_name, instance.uuid)


async def keep_connection(
    env: Environment, device: str, attachment: Attachment, **changes: Any
) -> BlockDevice:
    """Keep what the volume service told of an attachment with the record of the volume, where it stays while the volume
    is attached. It may hold secrets, so it goes into no journal. That several servers may have the volume is kept
    beside it, because drivers must know.

    Args:
        device: the uuid of the block device. changes: of other fields of it, in the same transaction.

    Returns:
        The record now.

    Raises:
        NotFound: there is none any more.

    Spec: VOL-18, VOL-29.
    """
    stored = None
    if attachment.connection_info is not None:
        shared = await _is_shared(env, device, attachment.volume_id)
        told = {"serial": attachment.volume_id} | attachment.connection_info
        stored = msgspec.json.encode(told | ({"multiattach": True} if shared else {})).decode()
    changes |= {"attachment_id": attachment.id, "connection_info": stored}
    now = env.clock.now()

    def keep(conn: sa.Connection) -> BlockDevice:
        block_devices.update(conn, device, now=now, was=tuple(AttachState), **changes)
        return block_devices.get(conn, device)

    return await env.database.write(keep)


async def _is_shared(env: Environment, device: str, volume_id: str) -> bool:
    """Whether several servers may have a volume, as the record of it says, or if it was never connected the service."""
    stored = (await env.database.read(lambda conn: block_devices.get(conn, device))).connection_info
    if stored is not None:
        return "multiattach" in msgspec.json.decode(stored, type=dict[str, Any])
    return (await env.volumes.volume(None, volume_id)).multiattach


async def each(devices: Iterable[One], do: Callable[[One], Awaitable[None]]) -> None:
    """Do something with each volume, whatever becomes of the others.

    Raises:
        Retryable: which volumes failed, and why. Spec: DEL-07, DEL-08, DEL-17, DEL-20.
    """
    failed = []
    for device in devices:
        try:
            await do(device)
        except KilonovaError as error:
            failed.append(f"volume {device.volume_id or device.uuid}: {error.message}")
    if failed:
        raise Retryable("; ".join(failed))
