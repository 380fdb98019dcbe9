"""Making images of servers: snapshots and backups with rotation. Spec: API-124, API-125, API-545, API-618."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Answer, Call
from kilonova.api.compute import quota_check
from kilonova.api.compute.feature_blocks import refuse_with_encrypted_disks
from kilonova.api.compute.field_types import METADATA, NAME
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Integer, Object, Text, optional, required
from kilonova.domain.errors import InvalidInput
from kilonova.shapes.resources import is_volume_backed

OF_VOLUMES = Rule("servers:create_image:allow_volume_backed", Audience.MEMBER)
IMAGE_ID_IN_BODY = 45
NO_METADATA_QUOTA = 39


async def create_image(call: Call) -> Answer:
    """Of a server that boots from a volume, the image has snapshots of its volumes."""
    if is_volume_backed(call.server.instance.block_devices):
        call.require(OF_VOLUMES)
    refuse_with_encrypted_disks(call.server.instance)
    asked: dict[str, Any] = call.body["createImage"]
    metadata = asked.get("metadata") or {}
    await _check_metadata(call, metadata)
    image_id = await call.cloud.compute.create_image(call.context, call.server, asked["name"], metadata)
    return _answer(call, image_id)


async def create_backup(call: Call) -> Answer:
    """The image of a backup that is kept by no rotation is not worth a link."""
    if is_volume_backed(call.server.instance.block_devices):
        raise InvalidInput("Backup is not supported for volume-backed instances.", hint="back up its volumes")
    refuse_with_encrypted_disks(call.server.instance)
    asked: dict[str, Any] = call.body["createBackup"]
    metadata, rotation = asked.get("metadata") or {}, asked["rotation"]
    await _check_metadata(call, metadata)
    image_id = await call.cloud.compute.create_backup(
        call.context, call.server, asked["name"], metadata, backup_type=asked["backup_type"], rotation=rotation
    )
    return _answer(call, image_id, linked=rotation > 0)


async def _check_metadata(call: Call, metadata: dict[str, str]) -> None:
    """Raises OverQuota: up to 2.38, more than a server may have."""
    if call.version < NO_METADATA_QUOTA and metadata:
        limits = await call.cloud.quotas.limits(call.context.project_id or "", call.context.user_id)
        quota_check.check_metadata(limits, len(metadata))


def _answer(call: Call, image_id: str, *, linked: bool = True) -> Answer:
    if call.version >= IMAGE_ID_IN_BODY:
        return Answer({"image_id": image_id})
    return Answer(headers=(("Location", call.links.image_bookmark(image_id)),) if linked else ())


_IMAGE = Object({"name": required(NAME), "metadata": optional(METADATA)})
_BACKUP = Object({
    "name": required(NAME), "backup_type": required(Text(0, 255)), "rotation": required(Integer(0)),
    "metadata": optional(METADATA),
})

ROUTES = [
    server_action("createImage", create_image, Rule("servers:create_image", Audience.MEMBER), _IMAGE,
                  rules=(OF_VOLUMES,)),
    server_action("createBackup", create_backup, Rule("os-create-backup", Audience.MEMBER), _BACKUP),
]
