"""Giving back the volumes of a server that is deleted: none stays attached or reserved, and those that were to go with
the server are deleted.

The record of a volume goes when nothing is left to be done for it, so that what is owed is never forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.db import block_devices
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidVolume, VolumeNotFound
from kilonova.operations.environment import Environment
from kilonova.operations.volumes import each

log = structlog.get_logger(__name__)


class OwnedVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume of a server that is deleted, without what may be secret of it.

    Args:
        uuid: of the block device. goes: it is deleted with the server.
    """

    uuid: str
    volume_id: str | None
    attachment_id: str | None
    goes: bool


def owned_volumes(conn: sa.Connection, server: str) -> tuple[OwnedVolume, ...]:
    """All that its record names, as it is now. What a user brought and the server never got, because it was not
    reserved, does not go with it."""
    return tuple(map(_owned, block_devices.of_server(conn, server)))


def _owned(device: BlockDevice) -> OwnedVolume:
    was_got = device.source_type != "volume" or device.attachment_id is not None
    return OwnedVolume(
        uuid=device.uuid, volume_id=device.volume_id, attachment_id=device.attachment_id,
        goes=device.delete_on_termination and was_got,
    )


async def release_volumes(env: Environment, server: str, volumes: Iterable[OwnedVolume]) -> None:
    """Delete the attachments and then the volumes that go. May be repeated, and be late.

    Raises:
        Retryable: for some there is more to be done. Spec: DEL-05, DEL-09, DEL-10, DEL-13 to DEL-20, DEL-36, DEL-61.
    """
    async def release(volume: OwnedVolume) -> None:
        if volume.attachment_id is not None:
            await env.volumes.delete_attachment(volume.attachment_id)
        if volume.volume_id is not None:
            await env.volumes.discard_attachments(volume.volume_id, server, ())
            if volume.goes:
                await _delete(env, server, volume.volume_id)
        await env.database.write(lambda conn: block_devices.remove(conn, volume.uuid))

    await each(volumes, release)


async def release_all(env: Environment, server: str) -> None:
    """Delete all attachments of a server, whether records name them or not. Spec: BLD-76, DEL-43."""
    for one in await env.volumes.attachments(server):
        await env.volumes.delete_attachment(one.id)


async def _delete(env: Environment, server: str, volume_id: str) -> None:
    """One that another server has by now is not this one's any more. Spec: DEL-14, DEL-16, DEL-24, PER-91."""
    try:
        await env.volumes.delete_volume(volume_id)
    except InvalidVolume:
        try:
            found = await env.volumes.volume(None, volume_id)
        except VolumeNotFound:
            return
        if all(one.server_id == server for one in found.attachments):
            raise
        log.warning("volume kept, for another server has it", instance=server, volume=volume_id)
