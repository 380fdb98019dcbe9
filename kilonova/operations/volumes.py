"""The volumes of a server while operations work on it."""

from __future__ import annotations

import msgspec

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import KilonovaError, VolumeAttachmentNotFound
from kilonova.domain.instance import Instance
from kilonova.engine.operation import Tx
from kilonova.operations.environment import Environment
from kilonova.services.volumes import Attachment
from kilonova.shapes.disk_names import volume_name


def named(tx: Tx, instance: Instance, device: BlockDevice) -> BlockDevice:
    """A volume with the name that it will have in the server. Raises TooManyDisks, InvalidInput."""
    name = volume_name(
        device, block_devices.of_server(tx.conn, instance.uuid), flavor=instance.flavor, image=instance.image,
        asked=instance.block_devices,
    )
    return msgspec.structs.replace(device, device_name=name)


async def refresh_connections(env: Environment, server: str) -> None:
    """Before the guest of a server on a host is started: ask how its volumes are reached now, and keep that. The
    attachments are read, never updated, so that the volumes stay as they are. A server without volumes costs no call.

    Raises:
        KilonovaError: a volume of the server is not connected, and no guest is started without one of its disks.
        Spec: VOL-11, BDM-37 to BDM-39, BDM-41.
    """
    for device in await env.database.read(lambda conn: block_devices.of_server(conn, server)):
        if device.state is AttachState.ATTACHING:
            continue
        attachment = await _attachment(env, device)
        if attachment is None or attachment.connection_info is None:
            raise KilonovaError(
                f"Volume {device.volume_id} of server {server} is not connected to its host.",
                hint="detach the volume, and attach it again",
            )
        await keep_connection(env, device.uuid, attachment)


async def _attachment(env: Environment, device: BlockDevice) -> Attachment | None:
    if device.attachment_id is None:
        return None
    try:
        return await env.volumes.attachment(device.attachment_id)
    except VolumeAttachmentNotFound:
        return None


async def keep_connection(env: Environment, device: str, attachment: Attachment) -> None:
    """Keep what the volume service told of an attachment with the record of the volume, where it stays while the volume
    is attached. It may hold secrets, so it goes into no journal.

    Args:
        device: the uuid of the block device.
    """
    info = attachment.connection_info
    stored = None if info is None else msgspec.json.encode(info).decode()
    now = env.clock.now()
    await env.database.write(lambda conn: block_devices.update(
        conn, device, now=now, was=tuple(AttachState), attachment_id=attachment.id, connection_info=stored
    ))
