"""The volumes of a server while operations work on it."""

from __future__ import annotations

import msgspec

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
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
