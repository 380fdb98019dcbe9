"""The volumes of a new server: what the volume service says of them before the server is accepted. Spec: API-613."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from kilonova.api.call import Call
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidBlockDevice, InvalidInput, NotFound, VolumeNotFound, VolumeSnapshotNotFound
from kilonova.domain.image import Image
from kilonova.services.volumes import Volume, check_attachable

MULTIATTACH = 60
"""The microversion since which servers are made with volumes that several servers may have."""
_OF_IMAGE = ("image_id", "image_name", "min_ram", "min_disk", "disk_format", "container_format", "size", "checksum")
"""Of the metadata that a volume keeps of its image: what is no property."""


async def check_volumes(call: Call, devices: Sequence[BlockDevice], most: int) -> None:
    """Whether volumes that are named can be had by a new server, and others be made for it. What is asked of the volume
    service here may have changed when the server is built: a reservation decides.

    Args:
        most: how many servers are asked for.

    Raises:
        InvalidInput. Spec: API-108, API-560, BDM-34.
    """
    for device in devices:
        if device.volume_id is not None:
            _check_volume(call, device, await _volume(call, device.volume_id), most)
        elif device.is_volume:
            await _check_type(call, device.volume_type)
            await _check_source(call, device)


async def _volume(call: Call, volume_id: str) -> Volume:
    try:
        return await call.cloud.volumes.volume(call.context, volume_id)
    except VolumeNotFound as error:
        raise InvalidBlockDevice(f"failed to get volume {volume_id}.") from error


def _check_volume(call: Call, device: BlockDevice, volume: Volume, most: int) -> None:
    if volume.multiattach and call.version < MULTIATTACH:
        raise InvalidInput("Multiattach volumes are only supported starting with compute API version 2.60.")
    if most > 1 and not volume.multiattach:
        raise InvalidInput(f"Volume {volume.id} cannot be attached to several servers.")
    check_attachable(volume)
    if device.boot_index == 0 and not volume.bootable:
        raise InvalidBlockDevice(f"volume {volume.id} is not bootable.")


async def _check_type(call: Call, type_: str | None) -> None:
    """Spec: API-567."""
    try:
        await call.cloud.volumes.check_type(call.context, type_)
    except NotFound as error:
        raise InvalidInput(f"Volume type {type_} could not be found.") from error


async def _check_source(call: Call, device: BlockDevice) -> None:
    if device.snapshot_id is None:
        return
    try:
        snapshot = await call.cloud.volumes.snapshot(call.context, device.snapshot_id)
    except VolumeSnapshotNotFound as error:
        raise InvalidBlockDevice(f"failed to get snapshot {device.snapshot_id}.") from error
    if snapshot.status != "available":
        raise InvalidBlockDevice(f"snapshot {snapshot.id} is {snapshot.status}.")
    if device.volume_size is not None and device.volume_size < snapshot.size:
        raise InvalidBlockDevice(
            f"a volume of {device.volume_size} GiB is too small for snapshot {snapshot.id}, "
            f"which needs {snapshot.size} GiB."
        )


async def image_of_root(call: Call, root: BlockDevice) -> Image:
    """What is known of the image that the root volume of a server was made from, as an image without an id: it is the
    volume that the server boots from. A blank volume was made from none. Spec: EMG-30."""
    kept: dict[str, str] = {}
    if root.volume_id is not None:
        kept = (await _volume(call, root.volume_id)).image_metadata
    elif root.snapshot_id is not None:
        kept = await _kept_with_snapshot(call, root.snapshot_id)
    return Image(
        id="", name=kept.get("image_name", ""), min_ram=_number(kept, "min_ram"), min_disk=_number(kept, "min_disk"),
        disk_format=kept.get("disk_format") or "raw", container_format=kept.get("container_format") or "bare",
        properties={name: value for name, value in kept.items() if name not in _OF_IMAGE},
    )


async def _kept_with_snapshot(call: Call, snapshot_id: str) -> dict[str, str]:
    """The volume that a snapshot was taken of may be gone."""
    try:
        snapshot = await call.cloud.volumes.snapshot(call.context, snapshot_id)
        return (await call.cloud.volumes.volume(call.context, snapshot.volume_id)).image_metadata
    except (VolumeNotFound, VolumeSnapshotNotFound):
        return {}


def _number(kept: dict[str, str], name: str) -> int:
    value = kept.get(name, "")
    return int(value) if value.isdecimal() else 0


def for_one_server(devices: Sequence[BlockDevice]) -> tuple[BlockDevice, ...]:
    """Block devices of a request as those of one server: no two servers have the same."""
    return tuple(msgspec.structs.replace(device, uuid=str(uuid.uuid4())) for device in devices)
