"""Block devices of servers in stories, as requests name them."""

from __future__ import annotations

from typing import Any

import msgspec
from simulation.world import IMAGE

from kilonova.domain.block_device import BlockDevice

ROOT = "11111111-1111-4111-8111-11111111111a"
MORE = "11111111-1111-4111-8111-11111111111b"
WITHOUT_ID = msgspec.structs.replace(IMAGE, id="")
"""The image of a server that boots from a volume."""


def of_image(uuid: str = ROOT, **fields: Any) -> BlockDevice:
    """A root volume that is made from an image."""
    return msgspec.convert({
        "uuid": uuid, "source_type": "image", "destination_type": "volume", "image_id": IMAGE.id, "boot_index": 0,
        "volume_size": 2, "device_name": "/dev/vda", "state": "reserved", **fields,
    }, BlockDevice)


def of_user(volume: str, uuid: str = MORE, **fields: Any) -> BlockDevice:
    """A volume that its user brings."""
    return msgspec.convert({
        "uuid": uuid, "source_type": "volume", "destination_type": "volume", "volume_id": volume,
        "device_name": "/dev/vdb", "state": "reserved", **fields,
    }, BlockDevice)
