"""Moving a server to another volume, as a volume service asks for that migrates its volume. Spec: API-179, EMV-32."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute import server_records
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidInput, InvalidVolume, VolumeNotFound
from kilonova.operations.swap_volume import (
    CONNECT,
    STATES,
    SWAP_VOLUME,
    SwapVolume,
    refuse_other_size,
    refuse_unless_migrating,
)
from kilonova.services.volumes import Volume


async def swap(call: Call, device: BlockDevice, new_id: str) -> None:
    """Answers when the new volume is connected to the host; the copy goes on by itself.

    Args:
        device: the volume that the server has. new_id: that it is to have.

    Raises:
        VolumeNotFound: the old one. Conflict: it does not migrate. InvalidInput: the new one cannot take its place.
        InstanceLocked, InstanceInvalidState.
    """
    instance = call.server.instance
    server_records.check_lock(call, instance)
    server_records.check_state(instance, "swap_volume", frozenset(STATES))
    service = call.cloud.volumes
    volume = await service.volume(call.context, device.volume_id or "")
    refuse_unless_migrating(volume)
    try:
        new = await service.volume(call.context, new_id)
    except VolumeNotFound as error:
        raise InvalidInput(error.message) from error
    refuse_other_size(volume, new)
    if new.attachments:
        raise InvalidVolume(f"Invalid volume: volume {new.id} is in use.")
    await _refuse_shared(call, volume)
    await call.cloud.compute.ask_and_wait_for(
        call.context, call.server, SWAP_VOLUME, SwapVolume(volume.id, new.id), CONNECT
    )


async def _refuse_shared(call: Call, volume: Volume) -> None:
    """What another server writes meanwhile would be lost."""
    modes = [(await call.cloud.volumes.attachment(one.attachment_id)).mode for one in volume.attachments]
    if modes.count("rw") > 1:
        raise InvalidInput(f"Volume {volume.id} is attached to several servers that write to it.")
